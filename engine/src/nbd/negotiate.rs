//! Performs the handshake of fixed newstyle: options until the export is open.
//!
//! ```text
//! greet --- [start_tls, then wrapped by the caller] --- go    EXTENDED_HEADERS, else STRUCTURED_REPLY
//!                                                    |        SET_META_CONTEXT (base:allocation, qemu:dirty-bitmap)
//!                                                    |        GO, else EXPORT_NAME          -> transmission phase
//!                                                     \ list  LIST, INFO per export, ABORT  -> closed
//! ```
//! Blocking, over any stream; the owner of the stream bounds the time. It reads exactly what belongs to the handshake,
//! so that the transmission phase starts at the next byte. Every length that the peer names is bounded before memory is
//! taken for it.

use super::codec::{u16_at, u32_at, u64_at};
use super::{ExportFacts, ExportFlags, MetaContexts, ReplyStyle};
use std::io::{self, Read, Write};

const GREETING_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FIXED_NEWSTYLE: u16 = 1;

/// Bytes of a name or a query.
const NAME_BYTES_MAX: usize = 4096;
/// Bytes of one reply to an option: a name and a description fit many times over.
const REPLY_BYTES_MAX: usize = 64 << 10;
/// Replies to one option other than LIST: some for each kind of information, and to spare.
const REPLIES_MAX: usize = 1024;
/// Exports that are listed.
const EXPORTS_MAX: usize = 65_536;
/// Bytes of their names and descriptions in all.
const LISTING_BYTES_MAX: usize = 32 << 20;

/// Options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OptionCode {
    ExportName = 1,
    Abort = 2,
    List = 3,
    StartTls = 5,
    Info = 6,
    Go = 7,
    StructuredReply = 8,
    SetMetaContext = 10,
    ExtendedHeaders = 11,
}

const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_META_CONTEXT: u32 = 4;
const REPLY_ERROR: u32 = 1 << 31;

/// Codes of [`NegotiationError::Refused`] that callers distinguish.
pub(crate) const ERR_UNSUP: u32 = REPLY_ERROR | 1;
pub(crate) const ERR_POLICY: u32 = REPLY_ERROR | 2;
const ERR_INVALID: u32 = REPLY_ERROR | 3;
const ERR_PLATFORM: u32 = REPLY_ERROR | 4;
const ERR_TLS_REQD: u32 = REPLY_ERROR | 5;
pub(crate) const ERR_UNKNOWN: u32 = REPLY_ERROR | 6;
pub(crate) const ERR_SHUTDOWN: u32 = REPLY_ERROR | 7;
const ERR_BLOCK_SIZE_REQD: u32 = REPLY_ERROR | 8;
pub(crate) const ERR_TOO_BIG: u32 = REPLY_ERROR | 9;

const INFO_EXPORT: u16 = 0;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

const ALLOCATION: &str = "base:allocation";
const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// Export and contexts that a client asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WantedExport<'a> {
    /// Name of the export; empty for the default one.
    pub export: &'a str,
    /// The name of a dirty bitmap, without which there is no use in going on.
    pub dirty_bitmap: Option<&'a str>,
    /// `base:allocation`, if it can be had.
    pub allocation: bool,
}

/// Result of a handshake: the stream is in its transmission phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Negotiated {
    pub facts: ExportFacts,
    pub style: ReplyStyle,
    pub contexts: MetaContexts,
}

/// Reason why there is no session.
#[derive(Debug)]
pub(crate) enum NegotiationError {
    /// The stream failed or was closed.
    Io(io::Error),
    /// The peer broke the protocol.
    Violation(String),
    /// The server has refused: a code of the protocol (`ERR_UNSUP` also for servers that are too old) and its message.
    Refused { code: u32, message: String },
    /// The server requires TLS.
    TlsRequired,
    /// The export has no dirty bitmap of this name, or the server has no such contexts.
    NoBitmap(String),
}

impl From<io::Error> for NegotiationError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// First message of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// Handshake flags: bit 0 fixed newstyle, bit 1 no zeroes.
    pub flags: u16,
}

/// An export as a server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    /// Name by which it is asked for.
    pub name: String,
    /// The server's words about it.
    pub description: Option<String>,
    /// Size of the export; `None` if the server reports it only when the export is opened.
    pub size_bytes: Option<u64>,
    /// Whether writing is refused.
    pub read_only: Option<bool>,
}

/// Reads the server's greeting and answers it. Servers of the old style are refused with [`ERR_UNSUP`].
///
/// `NO_ZEROES` is not asked for: it saves 124 bytes, and only where there is no GO.
pub(crate) fn greet<S: Read + Write>(stream: &mut S) -> Result<Greeting, NegotiationError> {
    let magic: [u8; 8] = array(stream)?;
    if u64::from_be_bytes(magic) != GREETING_MAGIC {
        return Err(violation("it is no NBD server: wrong magic number in its greeting"));
    }
    let style: [u8; 8] = array(stream)?;
    let too_old = |message: &str| Err(NegotiationError::Refused { code: ERR_UNSUP, message: message.to_owned() });
    match u64::from_be_bytes(style) {
        OPTION_MAGIC => {}
        OLDSTYLE_MAGIC => return too_old("the server speaks the oldstyle protocol only"),
        _ => return Err(violation("wrong second magic number in its greeting")),
    }
    let flags = u16::from_be_bytes(array(stream)?);
    if flags & FIXED_NEWSTYLE == 0 {
        return too_old("the server does not speak fixed newstyle");
    }
    stream.write_all(&u32::from(FIXED_NEWSTYLE).to_be_bytes())?;
    stream.flush()?;
    Ok(Greeting { flags })
}

/// Asks for TLS. When it is granted the next byte belongs to TLS: the caller wraps the stream and goes on with `go`.
pub(crate) fn start_tls<S: Read + Write>(stream: &mut S) -> Result<(), NegotiationError> {
    send(stream, OptionCode::StartTls, &[])?;
    acknowledged(stream, OptionCode::StartTls)
}

/// Negotiates replies, contexts and the export. After a refusal ABORT was sent; the stream is of no further use.
pub(crate) fn go<S: Read + Write>(stream: &mut S, wanted: &WantedExport<'_>) -> Result<Negotiated, NegotiationError> {
    let outcome = open(stream, wanted);
    part(stream, outcome)
}

/// The exports that the server is willing to list, and what it says of each. Ends the handshake.
pub(crate) fn list<S: Read + Write>(stream: &mut S) -> Result<Vec<ListedExport>, NegotiationError> {
    let outcome = listed(stream);
    let exports = part(stream, outcome)?;
    // It has answered everything: how it takes the goodbye changes nothing.
    let _ = send(stream, OptionCode::Abort, &[]).and_then(|()| acknowledged(stream, OptionCode::Abort));
    Ok(exports)
}

/// Sends ABORT to a server that has refused an option, but not after a violation of the protocol or an error of the
/// stream.
fn part<S: Read + Write, T>(stream: &mut S, outcome: Result<T, NegotiationError>) -> Result<T, NegotiationError> {
    if let Err(NegotiationError::Refused { .. } | NegotiationError::TlsRequired | NegotiationError::NoBitmap(_)) =
        &outcome
    {
        let _ = send(stream, OptionCode::Abort, &[]);
    }
    outcome
}

fn open<S: Read + Write>(stream: &mut S, wanted: &WantedExport<'_>) -> Result<Negotiated, NegotiationError> {
    let longest = wanted.export.len().max(wanted.dirty_bitmap.map_or(0, |name| name.len() + DIRTY_BITMAP.len()));
    if longest > NAME_BYTES_MAX {
        let message = format!("names of exports and bitmaps have at most {NAME_BYTES_MAX} bytes");
        return Err(NegotiationError::Refused { code: ERR_TOO_BIG, message });
    }
    let style = reply_style(stream)?;
    let contexts = match style {
        ReplyStyle::Simple => MetaContexts::default(),
        ReplyStyle::Structured | ReplyStyle::Extended => meta_contexts(stream, wanted)?,
    };
    if let (Some(name), None) = (wanted.dirty_bitmap, contexts.dirty) {
        return Err(NegotiationError::NoBitmap(name.to_owned()));
    }
    let facts = match enter(stream, wanted.export) {
        // Extended headers oblige a server to know GO; what is left are servers from before it.
        Err(NegotiationError::Refused { code: ERR_UNSUP, .. }) if style != ReplyStyle::Extended => {
            by_export_name(stream, wanted.export)?
        }
        outcome => outcome?,
    };
    Ok(Negotiated { facts, style, contexts })
}

/// The richest style that the server knows.
fn reply_style<S: Read + Write>(stream: &mut S) -> Result<ReplyStyle, NegotiationError> {
    let styles =
        [(OptionCode::ExtendedHeaders, ReplyStyle::Extended), (OptionCode::StructuredReply, ReplyStyle::Structured)];
    for (option, style) in styles {
        send(stream, option, &[])?;
        if declined(acknowledged(stream, option))?.is_some() {
            return Ok(style);
        }
    }
    Ok(ReplyStyle::Simple)
}

/// `None` where the server does without: everything but a refusal to go on at all.
fn declined<T>(outcome: Result<T, NegotiationError>) -> Result<Option<T>, NegotiationError> {
    match outcome {
        Ok(it) => Ok(Some(it)),
        Err(NegotiationError::Refused { code, .. }) if code != ERR_SHUTDOWN => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Selects the wanted contexts that the server has.
fn meta_contexts<S: Read + Write>(stream: &mut S, wanted: &WantedExport<'_>) -> Result<MetaContexts, NegotiationError> {
    let allocation = wanted.allocation.then(|| ALLOCATION.to_owned());
    let dirty = wanted.dirty_bitmap.map(|name| format!("{DIRTY_BITMAP}{name}"));
    let queries: Vec<&String> = allocation.iter().chain(&dirty).collect();
    if queries.is_empty() {
        return Ok(MetaContexts::default());
    }
    let mut data = counted(wanted.export);
    data.extend((queries.len() as u32).to_be_bytes());
    for query in &queries {
        data.extend(counted(query));
    }
    send(stream, OptionCode::SetMetaContext, &data)?;
    let mut contexts = MetaContexts::default();
    let outcome = replies(stream, OptionCode::SetMetaContext, REPLIES_MAX, |kind, data| {
        let is_context = kind == REPLY_META_CONTEXT && data.len() >= 4;
        let name = is_context.then(|| &data[4..]).ok_or_else(|| violation("a malformed reply to SET_META_CONTEXT"))?;
        let is = |query: &Option<String>| query.as_deref().map(str::as_bytes) == Some(name);
        let place = match (is(&allocation), is(&dirty)) {
            (true, _) => &mut contexts.allocation,
            (_, true) => &mut contexts.dirty,
            _ => return Err(violation("it selected a metadata context that was not asked for")),
        };
        match place.replace(u32_at(data, 0)) {
            None => Ok(()),
            Some(_) => Err(violation("it selected a metadata context twice")),
        }
    });
    if let Err(NegotiationError::Refused { code: ERR_UNKNOWN, .. }) = outcome {
        // Else a bitmap would be missed where the export is.
        return outcome.map(|()| contexts);
    }
    if declined(outcome)?.is_none() {
        // A refusal takes back what was selected before it.
        return Ok(MetaContexts::default());
    }
    if contexts.allocation.is_some() && contexts.allocation == contexts.dirty {
        return Err(violation("it gave one number to two metadata contexts"));
    }
    Ok(contexts)
}

/// Facts from replies of the kind INFO.
#[derive(Debug, Default)]
struct InfoReplies {
    export: Option<(u64, ExportFlags)>,
    sizes: Option<[u32; 3]>,
    description: Option<String>,
}

impl InfoReplies {
    /// Takes one reply. Information that was not requested is ignored.
    fn take(&mut self, kind: u32, data: &[u8]) -> Result<(), NegotiationError> {
        if kind != REPLY_INFO || data.len() < 2 {
            return Err(violation("a malformed reply of information on an export"));
        }
        match (u16_at(data, 0), data.len()) {
            (INFO_EXPORT, 12) => self.export = Some((u64_at(data, 2), ExportFlags(u16_at(data, 10)))),
            (INFO_BLOCK_SIZE, 14) => self.sizes = Some([u32_at(data, 2), u32_at(data, 6), u32_at(data, 10)]),
            (INFO_EXPORT | INFO_BLOCK_SIZE, _) => return Err(violation("information on an export has a wrong length")),
            (INFO_DESCRIPTION, _) => self.description = Some(text(&data[2..])),
            _ => {}
        }
        Ok(())
    }
}

/// GO: the server enters the transmission phase, with its constraints known.
fn enter<S: Read + Write>(stream: &mut S, export: &str) -> Result<ExportFacts, NegotiationError> {
    let described = describe(stream, OptionCode::Go, export, INFO_BLOCK_SIZE)?;
    let Some((size_bytes, flags)) = described.export else {
        return Err(violation("it opened an export without saying its size"));
    };
    facts(size_bytes, flags, described.sizes)
}

/// INFO or GO, with one further kind of information asked for.
fn describe<S: Read + Write>(
    stream: &mut S,
    option: OptionCode,
    export: &str,
    ask: u16,
) -> Result<InfoReplies, NegotiationError> {
    let mut data = counted(export);
    data.extend([1_u16.to_be_bytes(), ask.to_be_bytes()].concat());
    send(stream, option, &data)?;
    let mut described = InfoReplies::default();
    replies(stream, option, REPLIES_MAX, |kind, data| described.take(kind, data))?;
    Ok(described)
}

/// EXPORT_NAME, for servers from before GO. One that does not have the export closes the connection without a word.
fn by_export_name<S: Read + Write>(stream: &mut S, export: &str) -> Result<ExportFacts, NegotiationError> {
    send(stream, OptionCode::ExportName, export.as_bytes())?;
    let answer: [u8; 10] = array(stream).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server closed the connection when it was asked for the export (servers without NBD_OPT_GO refuse so)",
        ),
        _ => error,
    })?;
    let _zeroes: [u8; 124] = array(stream)?;
    facts(u64_at(&answer, 0), ExportFlags(u16_at(&answer, 8)), None)
}

/// Checks the facts of the export. `sizes`: minimum, preferred, maximum.
fn facts(size_bytes: u64, flags: ExportFlags, sizes: Option<[u32; 3]>) -> Result<ExportFacts, NegotiationError> {
    let [min, preferred, max] = sizes.unwrap_or([1, 4096, 32 << 20]);
    if size_bytes > i64::MAX as u64 {
        return Err(violation(format!("an export of {size_bytes} bytes")));
    }
    if flags.0 & 1 == 0 {
        return Err(violation("the flags of the export lack the bit that is always set"));
    }
    if !min.is_power_of_two() || min > 64 << 10 {
        return Err(violation(format!("a minimum block size of {min} bytes")));
    }
    if !preferred.is_power_of_two() || preferred < 512 || preferred < min {
        return Err(violation(format!("a preferred block size of {preferred} bytes, with a minimum of {min}")));
    }
    if max < min {
        return Err(violation(format!("a maximum payload of {max} bytes, with a minimum block of {min}")));
    }
    // The maximum need not be a multiple of anything, nor is the one that means "no limit"; requests are.
    let max_payload_bytes = max - max % min;
    Ok(ExportFacts { size_bytes, flags, min_block_bytes: min, preferred_block_bytes: preferred, max_payload_bytes })
}

fn listed<S: Read + Write>(stream: &mut S) -> Result<Vec<ListedExport>, NegotiationError> {
    let (mut exports, mut bytes) = (Vec::new(), 0);
    let mut weigh = |more: usize| {
        bytes += more;
        if bytes <= LISTING_BYTES_MAX { Ok(()) } else { Err(violation("it lists more exports than can be kept")) }
    };
    send(stream, OptionCode::List, &[])?;
    replies(stream, OptionCode::List, EXPORTS_MAX, |kind, data| {
        if kind != REPLY_SERVER || data.len() < 4 {
            return Err(violation("a malformed reply to LIST"));
        }
        exports.push(listed_export(data)?);
        weigh(data.len())
    })?;
    for export in &mut exports {
        match declined(describe(stream, OptionCode::Info, &export.name, INFO_DESCRIPTION)) {
            Ok(None) | Err(NegotiationError::TlsRequired) => {}
            Ok(Some(described)) => {
                weigh(described.description.as_ref().map_or(0, String::len))?;
                export.add(described);
            }
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(exports)
}

impl ListedExport {
    /// Adds a reply about the export.
    fn add(&mut self, described: InfoReplies) {
        // nbd-server 3.24 says 0 of every export that is not open yet.
        self.size_bytes = described.export.map(|(size_bytes, _)| size_bytes).filter(|&size_bytes| size_bytes > 0);
        self.read_only = described.export.map(|(_, flags)| flags.is_read_only());
        self.description = described.description.or(self.description.take());
    }
}

/// The name, and what follows it.
fn listed_export(data: &[u8]) -> Result<ListedExport, NegotiationError> {
    let end = (u32_at(data, 0) as usize).saturating_add(4);
    let name = data.get(4..end).ok_or_else(|| violation("the name of an export ends past the reply to LIST"))?;
    if name.len() > NAME_BYTES_MAX {
        return Err(violation(format!("the name of an export has {} bytes", name.len())));
    }
    let name = std::str::from_utf8(name).map_err(|_| violation("the name of an export is not UTF-8"))?.to_owned();
    let description = (end < data.len()).then(|| text(&data[end..]));
    Ok(ListedExport { name, description, size_bytes: None, read_only: None })
}

/// A string with its length in front.
fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

/// Sends an option in one write, so that the server receives it at once.
fn send<S: Write>(stream: &mut S, option: OptionCode, data: &[u8]) -> Result<(), NegotiationError> {
    let numbers = [option as u32, data.len() as u32].map(u32::to_be_bytes).concat();
    stream.write_all(&[OPTION_MAGIC.to_be_bytes().as_slice(), &numbers, data].concat())?;
    Ok(stream.flush()?)
}

/// Replies up to the acknowledgement, none of which carries anything.
fn acknowledged<S: Read>(stream: &mut S, option: OptionCode) -> Result<(), NegotiationError> {
    replies(stream, option, 1, |kind, _| Err(violation(format!("reply {kind} to option {option:?}"))))
}

/// Hands replies to `each` until the server acknowledges or refuses the option.
fn replies<S: Read>(
    stream: &mut S,
    option: OptionCode,
    most: usize,
    mut each: impl FnMut(u32, &[u8]) -> Result<(), NegotiationError>,
) -> Result<(), NegotiationError> {
    for _ in 0..=most {
        let (kind, data) = reply(stream, option)?;
        match kind {
            REPLY_ACK if data.is_empty() => return Ok(()),
            REPLY_ACK => return Err(violation("an acknowledgement that carries data")),
            ERR_TLS_REQD => return Err(NegotiationError::TlsRequired),
            code if code & REPLY_ERROR != 0 => {
                return Err(NegotiationError::Refused { code, message: words(code, &data) });
            }
            kind => each(kind, &data)?,
        }
    }
    Err(violation(format!("more than {most} replies to option {option:?}")))
}

/// Receives one reply to `option`: its type and data.
fn reply<S: Read>(stream: &mut S, option: OptionCode) -> Result<(u32, Vec<u8>), NegotiationError> {
    let head: [u8; 20] = array(stream)?;
    if u64_at(&head, 0) != OPTION_REPLY_MAGIC {
        return Err(violation("wrong magic number in a reply to an option"));
    }
    if u32_at(&head, 8) != option as u32 {
        return Err(violation(format!("a reply to option {} after option {option:?}", u32_at(&head, 8))));
    }
    let len = u32_at(&head, 16) as usize;
    if len > REPLY_BYTES_MAX {
        return Err(violation(format!("a reply of {len} bytes to option {option:?}")));
    }
    let mut data = vec![0; len];
    stream.read_exact(&mut data)?;
    Ok((u32_at(&head, 12), data))
}

fn array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn violation(what: impl Into<String>) -> NegotiationError {
    NegotiationError::Violation(what.into())
}

/// The server's words, or what its code means.
fn words(code: u32, data: &[u8]) -> String {
    let meaning = match code {
        _ if !data.is_empty() => return text(data),
        ERR_UNSUP => "the server does not know this option",
        ERR_POLICY => "the server's policy forbids it",
        ERR_INVALID => "the server calls the request invalid",
        ERR_PLATFORM => "the server's platform cannot do it",
        ERR_UNKNOWN => "the server has no such export",
        ERR_SHUTDOWN => "the server is shutting down",
        ERR_BLOCK_SIZE_REQD => "the server insists on block size constraints",
        ERR_TOO_BIG => "the request or its answer is too big for the server",
        _ => return format!("the server refused with error {}", code & !REPLY_ERROR),
    };
    meaning.to_owned()
}

/// Words of a peer, fit for a terminal and a log line.
fn text(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(NAME_BYTES_MAX)];
    String::from_utf8_lossy(cut).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
