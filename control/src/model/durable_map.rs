//! Records which bytes of a destination are durable and how its volumes are recognised, small enough for a task's
//! record. A map may omit durable bytes, but never names bytes that are not durable.

use blockhaul_engine::extent::{ByteRange, RangeSet};
use blockhaul_engine::supervision::{DurableLeaf, VolumeEvidence};
use serde::{Deserialize, Serialize};

/// Most ranges that are kept: at most 4 KiB as decimal text of offsets and lengths.
pub(super) const RANGES_MAX: usize = 96;

/// Most leaves that are kept; each takes about 60 bytes.
const LEAVES_MAX: usize = 9;
/// Longest identity of a source, in bytes; a longer text is not kept.
const SOURCE_BYTES_MAX: usize = 512;

/// Durable ranges as `[start, end)` pairs in order, each start above the end before it; and the evidence by which a
/// later run recognises the volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct DurableMap {
    ranges: Vec<(u64, u64)>,
    evidence: VolumeEvidence,
}

/// Stored form: plain pairs if there is no evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Plain(Vec<(u64, u64)>),
    Known {
        ranges: Vec<(u64, u64)>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
        /// Offset, length, digest in hexadecimal digits (none for zeros).
        #[serde(default)]
        leaves: Vec<(u64, u64, String)>,
    },
}

impl DurableMap {
    /// Keeps the longest of `ranges`, as many as a record has room for.
    #[must_use]
    pub fn of(ranges: &RangeSet) -> Self {
        let ranges = longest(ranges.iter().map(|range| (range.start(), range.end())).collect(), RANGES_MAX);
        Self { ranges, evidence: VolumeEvidence::default() }
    }

    /// Adds as much of this evidence as a record has room for.
    #[must_use]
    pub fn known_by(self, evidence: VolumeEvidence) -> Self {
        if self.is_empty() {
            return self;
        }
        let VolumeEvidence { source, mut leaves } = evidence;
        leaves.truncate(LEAVES_MAX);
        let source = source.filter(|source| source.len() <= SOURCE_BYTES_MAX);
        Self { evidence: VolumeEvidence { source, leaves }, ..self }
    }

    /// Returns the evidence by which its volumes are recognised.
    #[must_use]
    pub fn evidence(&self) -> &VolumeEvidence {
        &self.evidence
    }

    /// Returns the longer half of its ranges; of a single one nothing.
    #[must_use]
    pub fn halved(&self) -> Self {
        let ranges = longest(self.ranges.clone(), self.ranges.len() / 2);
        let evidence = if ranges.is_empty() { VolumeEvidence::default() } else { self.evidence.clone() };
        Self { ranges, evidence }
    }

    /// Returns the ranges as the engine takes them.
    #[must_use]
    pub fn to_ranges(&self) -> RangeSet {
        let mut ranges = RangeSet::new();
        self.ranges.iter().for_each(|&(start, end)| ranges.insert(ByteRange::new(start, end)));
        ranges
    }

    /// Returns the number of durable bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// Tells whether nothing is known to be durable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

fn longest(mut ranges: Vec<(u64, u64)>, count: usize) -> Vec<(u64, u64)> {
    if ranges.len() > count {
        ranges.sort_by_key(|(start, end)| std::cmp::Reverse(end - start));
        ranges.truncate(count);
        ranges.sort_unstable();
    }
    ranges
}

impl TryFrom<Stored> for DurableMap {
    type Error = &'static str;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        let (ranges, source, leaves) = match stored {
            Stored::Plain(ranges) => (ranges, None, Vec::new()),
            Stored::Known { ranges, source, leaves } => (ranges, source, leaves),
        };
        let is_sound = ranges.len() <= RANGES_MAX
            && ranges.iter().all(|(start, end)| start < end)
            && ranges.windows(2).all(|two| two[0].1 < two[1].0);
        if !is_sound {
            return Err("ranges that overlap, are empty, out of order or too many");
        }
        let leaves = leaves.into_iter().take(LEAVES_MAX).map(leaf).collect::<Option<_>>();
        let leaves = leaves.ok_or("a leaf that cannot be")?;
        Ok(Self { ranges, evidence: VolumeEvidence { source, leaves } })
    }
}

fn leaf((offset, length, digest): (u64, u64, String)) -> Option<DurableLeaf> {
    let range = ByteRange::new(offset, offset.checked_add(length).filter(|&end| end > offset)?);
    let digest = if digest.is_empty() { None } else { Some(u128::from_str_radix(&digest, 16).ok()?) };
    Some(DurableLeaf { range, digest })
}

impl From<DurableMap> for Stored {
    fn from(map: DurableMap) -> Self {
        let DurableMap { ranges, evidence } = map;
        if evidence == VolumeEvidence::default() {
            return Self::Plain(ranges);
        }
        let shown = |leaf: DurableLeaf| {
            let digest = leaf.digest.map_or(String::new(), |digest| format!("{digest:x}"));
            (leaf.range.start(), leaf.range.len(), digest)
        };
        let VolumeEvidence { source, leaves } = evidence;
        Self::Known { ranges, source, leaves: leaves.into_iter().map(shown).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_forgets_the_shortest_ranges_and_stays_small() {
        let mut all = RangeSet::new();
        for index in 0..1000_u64 {
            let start = (1 << 60) + index * (1 << 30);
            all.insert(ByteRange::new(start, start + (index + 1) * 4096));
        }
        let map = DurableMap::of(&all);
        assert!(map.to_ranges().iter().all(|range| all.contains(range)));
        assert_eq!(map.to_ranges().iter().count(), RANGES_MAX);
        assert!(map.to_ranges().iter().all(|range| range.end() - range.start() >= 904 * 4096));
        let text = serde_json::to_string(&map).unwrap();
        assert!(text.len() <= 4096, "{}", text.len());
        assert_eq!(serde_json::from_str::<DurableMap>(&text).unwrap(), map);
    }

    #[test]
    fn evidence_is_small_and_a_map_without_any_is_stored_as_before() {
        let whole = DurableMap::of(&RangeSet::from_iter([ByteRange::new(0, 1 << 60)]));
        assert_eq!(serde_json::to_string(&whole).unwrap(), format!("[[0,{}]]", 1_u64 << 60));
        let leaf = |start| DurableLeaf { range: ByteRange::at(start, 1 << 20), digest: Some(u128::MAX) };
        let mut leaves: Vec<_> = (0..50).map(|index| leaf((1 << 59) + (index << 20))).collect();
        leaves[1].digest = None;
        let source = Some("s".repeat(SOURCE_BYTES_MAX));
        let map = whole.clone().known_by(VolumeEvidence { source, leaves });
        let text = serde_json::to_string(&map).unwrap();
        assert!(text.len() < 1250, "{}", text.len());
        assert_eq!(serde_json::from_str::<DurableMap>(&text).unwrap(), map);
        assert_eq!(map.evidence().leaves.len(), LEAVES_MAX);
        assert_eq!(map.halved(), DurableMap::default(), "nothing is known of nothing");
        for bad in [r#"{"ranges":[[0,1]],"leaves":[[5,0,"1"]]}"#, r#"{"ranges":[[0,1]],"leaves":[[5,1,"x"]]}"#] {
            assert!(serde_json::from_str::<DurableMap>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        for bad in ["[[1,1]]", "[[2,1]]", "[[0,4],[4,8]]", "[[8,9],[0,4]]", "[[0,5],[4,8]]"] {
            assert!(serde_json::from_str::<DurableMap>(bad).is_err(), "{bad}");
        }
    }
}
