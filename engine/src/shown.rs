//! Escapes names and foreign text, so that they are readable and cannot control a terminal.
//!
//! A name is bytes. [`Shown::shown`] writes it readably and differently from every other name: printable UTF-8 is
//! unchanged, a backslash is `\\`, a newline, tab and carriage return are `\n`, `\t` and `\r`, and every other byte is
//! `\xNN`: a control character, one that changes the direction or the width of text, and what is no UTF-8. `printf
//! '%b'` restores the bytes.
//!
//! [`line()`] is the last gate before a terminal or a log. It takes whole sentences, in which names are shown already,
//! and escapes in the same way what is still not printable: a message of a server, an argument as it was typed.
//! Backslashes stay as they are there, so that passing the gate twice changes nothing. Why: docs/design/0011.

use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;

/// A value with a name that is shown.
pub trait Shown {
    /// Returns the name, escaped as the module's head describes.
    fn shown(&self) -> Escaped<'_>;
}

impl<T: AsRef<OsStr> + ?Sized> Shown for T {
    fn shown(&self) -> Escaped<'_> {
        Escaped(self.as_ref().as_bytes())
    }
}

/// A name that is displayed escaped.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a [u8]);

impl<'a> From<&'a [u8]> for Escaped<'a> {
    fn from(name: &'a [u8]) -> Self {
        Self(name)
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for char in chunk.valid().chars() {
                if char == '\\' { f.write_str("\\\\")? } else { write_char(f, char)? }
            }
            write_bytes(f, chunk.invalid())?;
        }
        Ok(())
    }
}

/// `text` on one line, with nothing in it that a terminal would act on.
pub fn line(text: impl fmt::Display) -> String {
    let text = text.to_string();
    if text.chars().all(is_printable) {
        return text;
    }
    text.chars().fold(String::with_capacity(text.len()), |mut line, char| {
        write_char(&mut line, char).expect("a string takes everything");
        line
    })
}

/// Returns whether a terminal shows `char` as itself, and does nothing else: no control character, none that changes
/// the direction of text or has no width, no space but the usual one, none that is not assigned.
#[must_use]
pub fn is_printable(char: char) -> bool {
    if char.is_ascii() {
        return matches!(char, ' '..='~');
    }
    // The table of the standard library, which is only asked in this way. Behind a letter, an accent is printable.
    let mut word = [b'a'; 5];
    let end = 1 + char.encode_utf8(&mut word[1..]).len();
    std::str::from_utf8(&word[..end]).is_ok_and(|word| word.escape_debug().count() == 2)
}

fn write_char(out: &mut impl Write, char: char) -> fmt::Result {
    match char {
        '\n' => out.write_str("\\n"),
        '\t' => out.write_str("\\t"),
        '\r' => out.write_str("\\r"),
        _ if is_printable(char) => out.write_char(char),
        _ => write_bytes(out, char.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

fn write_bytes(out: &mut impl Write, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "\\x{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn shown(name: &[u8]) -> String {
        OsStr::from_bytes(name).shown().to_string()
    }

    /// Returns what `printf '%b'` makes of it.
    fn bytes_of(shown: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), shown.as_bytes());
        while let [first, tail @ ..] = rest {
            (rest, _) = match (first, tail) {
                (b'\\', [b'x', high, low, tail @ ..]) => {
                    let digits = [*high, *low];
                    let byte = u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap();
                    (tail, bytes.push(byte))
                }
                (b'\\', [b'n', tail @ ..]) => (tail, bytes.push(b'\n')),
                (b'\\', [b't', tail @ ..]) => (tail, bytes.push(b'\t')),
                (b'\\', [b'r', tail @ ..]) => (tail, bytes.push(b'\r')),
                (b'\\', [b'\\', tail @ ..]) => (tail, bytes.push(b'\\')),
                (byte, tail) => (tail, bytes.push(*byte)),
            };
        }
        bytes
    }

    #[test]
    fn plain_names_are_shown_unchanged() {
        for name in ["/dev/sdb", "a b", "größe", "gro\u{308}ße", "磁盘/файл", "100%'\"$`!*", "🙂"] {
            assert_eq!(name.shown().to_string(), name);
            assert_eq!(line(name), name);
        }
        assert_eq!(Path::new("/a").shown().to_string(), "/a");
    }

    #[test]
    fn other_bytes_are_escaped() {
        for (name, expected) in [
            (&b"bad\xff"[..], r"bad\xff"),
            (b"a\nb\tc\rd", r"a\nb\tc\rd"),
            (b"\x1b[2J\x07\x7f\0", r"\x1b[2J\x07\x7f\x00"),
            ("\u{9b}31m".as_bytes(), r"\xc2\x9b31m"),
            ("\u{202e}gpj\u{2066}\u{200d}\u{feff}".as_bytes(), r"\xe2\x80\xaegpj\xe2\x81\xa6\xe2\x80\x8d\xef\xbb\xbf"),
            ("\u{2028}\u{a0}\u{e0041}".as_bytes(), r"\xe2\x80\xa8\xc2\xa0\xf3\xa0\x81\x81"),
            (br"a\nb", r"a\\nb"),
            (b"cut \xe2\x82", r"cut \xe2\x82"),
        ] {
            assert_eq!(shown(name), expected);
        }
    }

    #[test]
    fn a_line_leaves_shown_names_unchanged() {
        assert_eq!(line("said \u{1b}[2J\nforged"), r"said \x1b[2J\nforged");
        assert_eq!(line(r"open /a\\b\xff"), r"open /a\\b\xff");
    }

    /// Bytes among which those that need an escape are frequent.
    fn name() -> impl Strategy<Value = Vec<u8>> {
        let char = prop_oneof![any::<char>(), Just('\\'), Just('x'), Just('n'), Just('\u{202e}'), Just('\u{9b}')];
        let piece =
            prop_oneof![any::<u8>().prop_map(|byte| vec![byte]), char.prop_map(|it| it.to_string().into_bytes())];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn a_shown_name_is_printable_and_restores_its_bytes(name in name()) {
            let shown = shown(&name);
            prop_assert!(shown.chars().all(|char| is_printable(char) && !char.is_control()), "{shown:?}");
            // So different names are shown differently.
            prop_assert_eq!(bytes_of(&shown), name);
            prop_assert_eq!(line(&shown), shown);
        }

        #[test]
        fn a_line_is_one_line_and_escaping_twice_changes_nothing(text in any::<String>()) {
            let once = line(&text);
            prop_assert!(once.chars().all(|char| is_printable(char) && !char.is_control()), "{once:?}");
            prop_assert_eq!(line(&once), once);
        }
    }
}
