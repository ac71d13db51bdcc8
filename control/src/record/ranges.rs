//! Which bytes of a destination are durable, small enough for a record: it may forget, never invent.

use blockhaul_engine::extent::{ByteRange, RangeSet};
use serde::{Deserialize, Serialize};

/// Ranges that are kept: as decimal text of offsets and lengths at most 4 KiB.
pub(super) const RANGES_MAX: usize = 96;

/// Ranges as `[start, end)` pairs in order, each start above the end before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct DurableMap(Vec<(u64, u64)>);

impl DurableMap {
    /// The longest of `ranges`, as many as a record has room for.
    #[must_use]
    pub fn of(ranges: &RangeSet) -> Self {
        Self(longest(ranges.iter().map(|range| (range.start(), range.end())).collect(), RANGES_MAX))
    }

    /// The longer half of its ranges; of a single one nothing.
    #[must_use]
    pub fn halved(&self) -> Self {
        Self(longest(self.0.clone(), self.0.len() / 2))
    }

    /// As the engine takes it.
    #[must_use]
    pub fn to_ranges(&self) -> RangeSet {
        let mut ranges = RangeSet::new();
        self.0.iter().for_each(|&(start, end)| ranges.insert(ByteRange::new(start, end)));
        ranges
    }

    /// Bytes in it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether nothing is known to be durable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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

impl TryFrom<Vec<(u64, u64)>> for DurableMap {
    type Error = &'static str;

    fn try_from(pairs: Vec<(u64, u64)>) -> Result<Self, Self::Error> {
        let is_sound = pairs.len() <= RANGES_MAX
            && pairs.iter().all(|(start, end)| start < end)
            && pairs.windows(2).all(|two| two[0].1 < two[1].0);
        if is_sound { Ok(Self(pairs)) } else { Err("ranges that overlap, are empty, out of order or too many") }
    }
}

impl From<DurableMap> for Vec<(u64, u64)> {
    fn from(map: DurableMap) -> Self {
        map.0
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
    fn ranges_that_cannot_be_are_refused() {
        for bad in ["[[1,1]]", "[[2,1]]", "[[0,4],[4,8]]", "[[8,9],[0,4]]", "[[0,5],[4,8]]"] {
            assert!(serde_json::from_str::<DurableMap>(bad).is_err(), "{bad}");
        }
    }
}
