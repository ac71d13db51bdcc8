//! Asks every server of an ensemble for its state, to explain why there is no session. The client library tries all
//! servers without reporting anything.

use super::version;
use std::time::Duration;
use tokio::time::timeout;

/// Longest wait for one server; all are asked at once.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Most characters shown of an unexpected answer.
const SHOWN_MAX: usize = 60;

/// Describes the answer of each of `servers`, `HOST:PORT,...`.
pub(super) async fn describe_servers(servers: &str) -> String {
    let asked = servers.split(',').map(str::to_owned).map(|server| {
        tokio::spawn(async move {
            let answer = match timeout(ANSWER_WAIT, version::ask(&server)).await {
                Ok(Ok(answer)) => describe(&answer),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", ANSWER_WAIT.as_secs()),
            };
            format!("{server}: {answer}")
        })
    });
    let asked: Vec<_> = asked.collect();
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.unwrap_or_else(|error| error.to_string()));
    }
    answers.join("; ")
}

/// Describes a server by its answer to `srvr`.
fn describe(answer: &str) -> String {
    let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
    if answer.starts_with("Zookeeper version: ") {
        let mode: String = mode.unwrap_or("unknown").chars().take(SHOWN_MAX).collect();
        return format!("ZooKeeper serving, mode {}", mode.trim().escape_debug());
    }
    if answer.contains("not currently serving requests") {
        return String::from("ZooKeeper not serving: its ensemble has no quorum");
    }
    if answer.contains("is not in the whitelist") {
        return String::from("a ZooKeeper");
    }
    if answer.is_empty() {
        return String::from("closed the connection: not a ZooKeeper, or one with too many connections");
    }
    let shown: String = answer.chars().take(SHOWN_MAX).collect();
    format!("not a ZooKeeper: answered '{}'", shown.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn an_answer_is_described_by_its_kind_of_server() {
        for (answer, part) in [
            ("Zookeeper version: 3.8.0-1, built on 2024\nMode: follower\nNode count: 5\n", "serving, mode follower"),
            ("This ZooKeeper instance is not currently serving requests\n", "no quorum"),
            ("srvr is not executed because it is not in the whitelist.\n", "a ZooKeeper"),
            ("", "closed the connection"),
            (
                "HTTP/1.1 400 Bad Request\r\n\u{1b}[2J",
                "not a ZooKeeper: answered 'HTTP/1.1 400 Bad Request\\r\\n\\u{1b}[2J'",
            ),
        ] {
            assert!(describe(answer).contains(part), "{}", describe(answer));
        }
    }

    #[tokio::test]
    async fn each_server_is_named_with_its_answer() {
        let (talks, refuses) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (there, gone) = (talks.local_addr().unwrap(), refuses.local_addr().unwrap());
        drop(refuses);
        tokio::spawn(async move {
            let (mut stream, _) = talks.accept().await.unwrap();
            stream.read_exact(&mut [0; 4]).await.unwrap();
            stream.write_all(b"NBDMAGIC").await.unwrap();
        });
        let answers = describe_servers(&format!("{there},{gone}")).await;
        assert!(answers.contains(&format!("{there}: not a ZooKeeper: answered 'NBDMAGIC'")), "{answers}");
        assert!(answers.contains(&format!("{gone}: Connection refused")), "{answers}");
    }
}
