//! Decides which requests of browsers are answered at all, and adds the headers that bound what a page may do.
//!
//! What always holds: a change comes from a page of this console, not from one of another site, although browsers show
//! their certificates to whoever makes them ask. Without TLS the host of a request is an IP address or `localhost`, so that
//! no page of another site reaches the console by a name of its own that leads here.

use super::Site;
use super::layout::{self, Frame, Page};
use crate::host_port::parse_server;
use crate::rpc::handshake::ConnectionInfo;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Nothing but what the console itself serves: no foreign host, no script and no style inside of a page.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Answers a request, or refuses it.
pub(super) async fn pass(
    State(site): State<Site>,
    ConnectInfo(info): ConnectInfo<ConnectionInfo>,
    request: Request,
    next: Next,
) -> Response {
    info.asked.set();
    let host = host_of(&request);
    let mut response = if !site.is_encrypted && !is_literal(&host) {
        refuse(
            request.uri(),
            &format!("Without TLS the console is reached by an IP address or localhost, not '{host}'."),
        )
    } else if !request.method().is_safe() && !is_own(request.headers(), &host) {
        refuse(request.uri(), "A change is made by a form of the console, not by a page of another site.")
    } else {
        next.run(request).await
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn refuse(uri: &Uri, message: &str) -> Response {
    let page = Page::failure(StatusCode::FORBIDDEN, message);
    (StatusCode::FORBIDDEN, layout::page(&page, Frame::of(uri))).into_response()
}

/// Returns the host that a request names, with its port; of HTTP/2 it is in the address.
fn host_of(request: &Request) -> String {
    let authority = request.uri().authority().map(ToString::to_string);
    let header = || text(request.headers(), header::HOST.as_str()).map(str::to_owned);
    authority.or_else(header).unwrap_or_default()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn is_literal(host: &str) -> bool {
    let Ok((name, _)) = parse_server(host) else { return false };
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name == "localhost"
        || name.parse::<Ipv4Addr>().is_ok()
        || inner.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// Tells whether a page of this console has sent a form.
fn is_own(headers: &HeaderMap, host: &str) -> bool {
    let origin = text(headers, header::ORIGIN.as_str()).and_then(|origin| origin.split_once("://"));
    let is_same_site = text(headers, "sec-fetch-site").is_none_or(|site| site == "same-origin");
    is_same_site && origin.is_some_and(|(_, origin)| origin == host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts_are_told_from_addresses() {
        for host in ["127.0.0.1:80", "10.0.0.1", "[::1]:7", "localhost:7", "[::1]"] {
            assert!(is_literal(host), "{host}");
        }
        for host in ["", "attacker.example:80", "127.0.0.1.example", "localhost.example", "127.0.0.1:x"] {
            assert!(!is_literal(host), "{host}");
        }
    }

    #[test]
    fn only_forms_of_this_console_change_something() {
        let is_own = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            fields.iter().for_each(|(name, value)| drop(headers.insert(*name, HeaderValue::from_static(value))));
            super::is_own(&headers, "10.0.0.1:8080")
        };
        assert!(is_own(&[("origin", "http://10.0.0.1:8080")]));
        assert!(is_own(&[("origin", "https://10.0.0.1:8080"), ("sec-fetch-site", "same-origin")]));
        for foreign in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "http://attacker.example")],
            &[("origin", "http://10.0.0.1:8081")],
            &[("origin", "http://10.0.0.1:8080"), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(!is_own(foreign), "{foreign:?}");
        }
    }
}
