//! Recognises sources that are disk images or compressed files, and serves the disk inside of an image.
//!
//! ```text
//! source -> ImageFormat::of -> raw: copied as it is
//!                           -> image, --format auto: ServedImage (a read-only qemu-nbd) -> copied from its export
//!                           -> anything else: refused
//! ```
//! A copy of an image byte by byte is what few users mean: the disk in it is not usable at the destination.

mod format;
mod served_image;

pub(crate) use format::ImageFormat;
pub(crate) use served_image::ServedImage;
