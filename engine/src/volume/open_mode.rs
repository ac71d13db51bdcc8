//! Says what both volumes of a copy are opened for.

/// Purpose for which both ends are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenMode {
    /// To copy.
    Copy,
    /// To find out what a copy would be refused for: a missing destination is not created.
    Check,
}
