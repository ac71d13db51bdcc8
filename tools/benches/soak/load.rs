//! Measures the load of a busy center on its ensemble: writes and watches, while each node runs one copy.

use crate::copies::{Copies, NODES};
use crate::measure::{Bound, Measure};
use crate::options::Options;
use std::time::{Duration, Instant};

/// Duration of the measurement: longer than every period of the center.
const LASTS: Duration = Duration::from_secs(30);

pub(crate) fn measure(options: &Options) -> Vec<Measure> {
    let mut copies = Copies::new();
    let all = copies.begin();
    let lasts = if options.is_soak { LASTS } else { Duration::from_secs(3) };
    let (start, before) = (Instant::now(), copies.cluster.ensemble.transactions());
    std::thread::sleep(lasts);
    let (seconds, after) = (start.elapsed().as_secs_f64(), copies.cluster.ensemble.transactions());
    let watches = copies.cluster.ensemble.watches();
    copies.end(&all);
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let (writes, watches) = ((after - before) as f64 / seconds / NODES as f64, watches as f64 / NODES as f64);
    vec![
        Measure::new("writes to ZooKeeper, by runner with a copy", "1/s", vec![writes], Bound::AtMost(1.0)),
        Measure::new("watches in ZooKeeper, by process", "", vec![watches], Bound::AtMost(3.0)),
    ]
}
