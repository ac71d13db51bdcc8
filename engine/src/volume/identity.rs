//! Identifies a volume and one state of it: what a checkpoint stores about both sides.
//!
//! Numbers of devices and of file systems are given out anew at every boot, mount and attachment, so they identify
//! nothing. What stays is compared instead. Where nothing is known to stay the answer is "unknown".

use super::{VolumeIds, VolumeKind, VolumeName};

/// Facts that tell one volume from another and one state of it from a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Absolute path, or canonical URI of an export.
    pub name: VolumeName,
    /// File, device or export.
    pub kind: VolumeKind,
    /// File: the device number of its file system. Device: its own device number. Export: 0. Says nothing later on.
    pub device: u64,
    /// Inode of the file or of the device node. Export: 0.
    pub inode: u64,
    /// When the inode was created, in ns since the epoch; `None` where the file system does not say. Tells a file from
    /// a later one that was given the same inode number.
    pub born_ns: Option<i64>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// File: last change of the content, in ns since the epoch. Device and export: 0, as neither says.
    pub modified_ns: i64,
    /// File: last change of the inode, in ns since the epoch. Device and export: 0.
    pub changed_ns: i64,
    /// Persistent IDs of the device, or of the file's file system. Export: none.
    pub ids: VolumeIds,
}

/// Whether two identities are those of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IdentityMatch {
    /// The identities are of the same volume.
    Same,
    /// Unproven: only the content can decide.
    Unknown,
    /// The identities are of different volumes; the difference.
    Other(String),
}

impl Identity {
    /// Returns whether `now` is the volume that this was, whatever it holds by now and however it is called and
    /// numbered. An export is known by its name, as nothing else is known of it.
    pub(crate) fn compare_identity(&self, now: &Self) -> IdentityMatch {
        if self.kind != now.kind {
            return IdentityMatch::Other("it is a volume of another kind".to_owned());
        }
        match self.kind {
            VolumeKind::Export if self.name == now.name => IdentityMatch::Same,
            VolumeKind::Export => IdentityMatch::Other(format!("it was {}", self.name)),
            VolumeKind::Device => self.ids.compare_identity(&now.ids),
            VolumeKind::File => self.compare_file(now),
        }
    }

    /// As text, without its name: a line of numbers, then the ids.
    pub(crate) fn to_text(&self) -> String {
        let Self { name: _, kind, device: _, inode, born_ns, size_bytes, modified_ns, changed_ns, ids } = self;
        let kind = match kind {
            VolumeKind::File => "file",
            VolumeKind::Device => "device",
            VolumeKind::Export => "export",
        };
        let born = born_ns.map_or("-".to_owned(), |born| born.to_string());
        let VolumeIds { lasting, boot_id, disk_sequence } = ids;
        let medium = format!("{boot_id:x} {disk_sequence}");
        format!("{kind} {inode} {born} {size_bytes} {modified_ns} {changed_ns} {medium}\n{lasting}")
    }

    /// Parses the text of [`Identity::to_text`], with this name; `None` if it is invalid.
    pub(crate) fn from_text(text: &str, name: VolumeName) -> Option<Self> {
        let (numbers, lasting) = text.split_once('\n')?;
        let mut fields = numbers.split(' ');
        let kind = match fields.next()? {
            "file" => VolumeKind::File,
            "device" => VolumeKind::Device,
            "export" => VolumeKind::Export,
            _ => return None,
        };
        let inode = fields.next()?.parse().ok()?;
        let born_ns = match fields.next()? {
            "-" => None,
            born => Some(born.parse().ok()?),
        };
        let size_bytes = fields.next()?.parse().ok()?;
        let (modified_ns, changed_ns) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let boot_id = u128::from_str_radix(fields.next()?, 16).ok()?;
        let ids = VolumeIds { lasting: lasting.to_owned(), boot_id, disk_sequence: fields.next()?.parse().ok()? };
        Some(Self { name, kind, device: 0, inode, born_ns, size_bytes, modified_ns, changed_ns, ids })
    }

    fn compare_file(&self, now: &Self) -> IdentityMatch {
        if self.inode != now.inode {
            return IdentityMatch::Other(format!("its inode was {} and is {} now", self.inode, now.inode));
        }
        if let (Some(then), Some(now)) = (self.born_ns, now.born_ns)
            && then != now
        {
            return IdentityMatch::Other(format!("its time of birth (ns) was {then} and is {now} now"));
        }
        match self.ids.compare_identity(&now.ids) {
            // A file system that does not name itself: two files with one inode are never born in the same nanosecond.
            IdentityMatch::Unknown if self.born_ns.is_some() && self.born_ns == now.born_ns => IdentityMatch::Same,
            compare_identity => compare_identity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(kind: VolumeKind, ids: &[(&str, &str)]) -> Identity {
        let ids = VolumeIds::of(ids.iter().map(|&(tag, value)| (tag, value.to_owned())));
        let (name, born_ns) = ("/v".into(), Some(5));
        Identity { name, kind, device: 1, inode: 2, born_ns, size_bytes: 9, modified_ns: 7, changed_ns: 7, ids }
    }

    #[test]
    fn numbers_and_names_identify_nothing() {
        for kind in [VolumeKind::File, VolumeKind::Device] {
            let then = identity(kind, &[("uuid", "a")]);
            let moved = Identity { device: 99, name: "/elsewhere".into(), ..then.clone() };
            assert_eq!(then.compare_identity(&moved), IdentityMatch::Same);
            let other = identity(kind, &[("uuid", "b")]);
            assert!(matches!(then.compare_identity(&other), IdentityMatch::Other(_)), "same number, name and inode");
        }
    }

    #[test]
    fn a_file_is_known_by_inode_birth_and_file_system() {
        let then = identity(VolumeKind::File, &[("uuid", "a")]);
        for other in [Identity { inode: 3, ..then.clone() }, Identity { born_ns: Some(6), ..then.clone() }] {
            assert!(matches!(then.compare_identity(&other), IdentityMatch::Other(_)), "{other:?}");
        }
        let nameless = identity(VolumeKind::File, &[]);
        assert_eq!(nameless.compare_identity(&nameless), IdentityMatch::Same, "its birth tells");
        let unborn = Identity { born_ns: None, ..nameless };
        assert_eq!(unborn.compare_identity(&unborn), IdentityMatch::Unknown);
    }

    #[test]
    fn an_identity_is_the_same_as_text() {
        let ids = VolumeIds { boot_id: 0xabc, disk_sequence: 9, ..VolumeIds::of([("uuid", "a b".to_owned())]) };
        let plain = Identity { device: 0, ids, ..identity(VolumeKind::File, &[]) };
        for kind in [VolumeKind::File, VolumeKind::Device, VolumeKind::Export] {
            for born_ns in [None, Some(-5)] {
                let identity = Identity { kind, born_ns, ..plain.clone() };
                assert_eq!(Identity::from_text(&identity.to_text(), "/v".into()), Some(identity));
            }
        }
        for bad in ["", "file", "file 1 2 3\n", "disk 1 - 3 4 5 0 0\n"] {
            assert_eq!(Identity::from_text(bad, "/v".into()), None, "{bad}");
        }
    }

    #[test]
    fn a_device_without_ids_is_known_within_one_boot_only() {
        let plain = identity(VolumeKind::Device, &[]);
        assert_eq!(plain.compare_identity(&plain), IdentityMatch::Unknown);
        let seen = |boot_id, disk_sequence| {
            let ids = VolumeIds { boot_id, disk_sequence, ..VolumeIds::default() };
            Identity { ids, ..plain.clone() }
        };
        assert_eq!(seen(1, 7).compare_identity(&seen(1, 7)), IdentityMatch::Same);
        for now in [seen(1, 8), seen(2, 7), seen(1, 0)] {
            assert_eq!(seen(1, 7).compare_identity(&now), IdentityMatch::Unknown, "{now:?}");
        }
        assert_eq!(seen(0, 7).compare_identity(&seen(0, 7)), IdentityMatch::Unknown, "a boot without an id");
    }

    #[test]
    fn an_export_is_its_name_and_kinds_are_never_mixed() {
        let export = identity(VolumeKind::Export, &[]);
        assert_eq!(export.compare_identity(&export), IdentityMatch::Same);
        let renamed = Identity { name: "/w".into(), ..export.clone() };
        assert!(matches!(export.compare_identity(&renamed), IdentityMatch::Other(_)));
        assert!(matches!(export.compare_identity(&identity(VolumeKind::File, &[])), IdentityMatch::Other(_)));
    }
}
