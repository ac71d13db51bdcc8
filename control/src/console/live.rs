//! Keeps open pages up to date: renders a page again each second, and sends it when it has changed.
//!
//! What always holds: an open page costs one place of [`PAGES_MAX`], and ends with its connection, with the process, or when
//! its caller may not see it any more.

use super::calls::Calls;
use super::view::View;
use super::{Failure, Site};
use crate::rpc::handshake::ConnectionInfo;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;

/// Most pages that are open at once.
pub(super) const PAGES_MAX: usize = 32;
/// Time between two renderings.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
pub(super) struct Of {
    of: String,
}

/// Answers with the events of one page.
pub(super) async fn events(
    State(site): State<Site>,
    ConnectInfo(info): ConnectInfo<ConnectionInfo>,
    Query(Of { of }): Query<Of>,
) -> Response {
    let view = of.parse::<Uri>().ok().and_then(|uri| View::parse(&uri));
    let Some(view) = view else { return StatusCode::NOT_FOUND.into_response() };
    let Ok(place) = Arc::clone(&site.live).try_acquire_owned() else {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    };
    let calls = Calls::new(Arc::clone(&site.center), info);
    // A browser asks again for events that have ended, but not where there are none: then its script loads the page.
    if let Err(Failure(status, message)) = view.render(&calls, site.may_write).await.map_err(Failure::from) {
        return (status, message).into_response();
    }
    let (events, stream) = mpsc::channel(1);
    let open = OpenPage { view, calls, may_write: site.may_write, events, _place: place };
    tokio::spawn(open.run(site.stopping.clone()));
    Sse::new(ReceiverStream::new(stream)).keep_alive(KeepAlive::new().interval(5 * EVERY)).into_response()
}

struct OpenPage {
    view: View,
    calls: Calls,
    may_write: bool,
    events: mpsc::Sender<Result<Event, Infallible>>,
    _place: OwnedSemaphorePermit,
}

impl OpenPage {
    async fn run(self, mut stopping: watch::Receiver<bool>) {
        let gone = self.events.clone();
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => {}
            () = gone.closed() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(self) {
        let mut last = String::new();
        loop {
            let Ok(page) = self.view.render(&self.calls, self.may_write).await.map_err(Failure::from) else { return };
            let main = page.main.into_string();
            if main != last {
                // A reader that is slower misses renderings, not the last one.
                if self.events.send(Ok(Event::default().data(&main))).await.is_err() {
                    return;
                }
                last = main;
            }
            sleep(EVERY).await;
        }
    }
}
