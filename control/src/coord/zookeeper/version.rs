//! Warns of ZooKeeper servers whose version is known to lose committed writes. The node still runs with them: stored
//! epochs protect destinations when history is lost.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for one server; those that do not answer are not checked.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Longest answer that is read; the version is in its first line.
const ANSWER_BYTES_MAX: u64 = 4 << 10;

/// Asks each of `servers`, `HOST:PORT,...`, for its version, and warns of those with known defects.
pub(super) async fn warn_of_defects(servers: String) {
    for server in servers.split(',') {
        let answer = tokio::time::timeout(ANSWER_WAIT, ask(server)).await;
        let Ok(Ok(answer)) = answer else { continue };
        if let Some((major, minor, patch)) = parse(&answer).filter(|version| !is_sound(*version)) {
            let version = format!("{major}.{minor}.{patch}");
            tracing::warn!(server, version, "this ZooKeeper can lose committed writes: use 3.8.5, 3.9.4 or later");
        }
    }
}

/// Sends `srvr`, which servers answer unless they are configured otherwise.
pub(super) async fn ask(server: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(b"srvr").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Parses `Zookeeper version: 3.8.0-..., built on ...`.
fn parse(answer: &str) -> Option<(u32, u32, u32)> {
    let version = answer.strip_prefix("Zookeeper version: ")?;
    let numbers = version.split(|character: char| !character.is_ascii_digit() && character != '.').next()?;
    let mut parts = numbers.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Tells whether a version has neither ZOOKEEPER-4785 (before 3.8.5) nor ZOOKEEPER-4925 (3.9.3), which lose writes.
fn is_sound(version: (u32, u32, u32)) -> bool {
    let is_old_line = (version.0, version.1) == (3, 8);
    if is_old_line { version >= (3, 8, 5) } else { version >= (3, 9, 4) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_from_answers() {
        let answer =
            "Zookeeper version: 3.8.0-${mvngit.commit.id}, built on 2024-12-29 17:54 UTC\nLatency min/avg/max: 0/0";
        assert_eq!(parse(answer), Some((3, 8, 0)));
        assert_eq!(parse("Zookeeper version: 3.10.12, built"), Some((3, 10, 12)));
        for other in ["", "srvr is not executed because it is not in the whitelist.", "Zookeeper version: 3.8", "3.8.0"]
        {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn both_lines_of_releases_have_their_first_sound_one() {
        for sound in [(3, 8, 5), (3, 8, 6), (3, 9, 4), (3, 10, 0), (4, 0, 0)] {
            assert!(is_sound(sound), "{sound:?}");
        }
        for defective in [(3, 4, 14), (3, 7, 9), (3, 8, 4), (3, 9, 0), (3, 9, 3)] {
            assert!(!is_sound(defective), "{defective:?}");
        }
    }
}
