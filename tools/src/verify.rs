//! Runs `blockhaul verify`: compares two volumes, or a volume with a receipt. Only reads.

use crate::args::RawVerify;
use crate::copy::{engine_config, network_terms};
use crate::exit::Exit;
use crate::output::{self, print_stderr};
use crate::progress::{ProgressDisplay, wait_with_progress};
use crate::signals::StopSignals;
use crate::{start_logging, summary};
use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::spec::{PathChoice, Reference, VerifySpec};
use blockhaul_engine::volume::{Locator, usual_block};
use std::path::Path;

/// Compares volumes. Differences are listed (at most 100) and give exit code 3.
///
/// # Errors
/// Refusals from before a job exists.
pub(crate) fn run(mut raw: RawVerify) -> Result<Exit> {
    output::refuse_volume_streams(raw.volumes.iter().map(Path::new).chain(raw.receipt.as_deref()))?;
    start_logging(std::mem::take(&mut raw.log))?;
    let output = raw.output;
    let (spec, config) = resolve(raw)?;
    tracing::info!(volume = %spec.volume, "comparing");
    let signals = StopSignals::catch()?;
    let engine = Engine::start(config)?;
    let job = engine.verify(spec);
    signals.stop(job.clone())?;
    let report = wait_with_progress(&job, ProgressDisplay::choose(output));
    if let Some(error) = &report.error {
        print_stderr(error);
    }
    if output.json {
        output::json_event("report", &report);
    } else {
        summary::of_verify(&report).iter().for_each(output::print_summary);
    }
    Ok(Exit::from(&report))
}

fn resolve(raw: RawVerify) -> Result<(VerifySpec, EngineConfig)> {
    let RawVerify { volumes, receipt, engine, network, limit, direct, sparse, output: _, log: _ } = raw;
    let (reference, volume) = match (receipt, volumes.as_slice()) {
        (Some(receipt), [volume]) => (Reference::Receipt(receipt), volume),
        (None, [source, destination]) => (Reference::Volume(Locator::parse(source)?), destination),
        (Some(_), _) => return Err(Error::bad_request("--receipt FILE takes exactly one volume")),
        (None, _) => return Err(Error::bad_request("specify two volumes, or --receipt FILE and one volume")),
    };
    let config = engine_config(&engine, PathChoice::Auto)?;
    let spec = VerifySpec {
        block_size: config.block_size,
        limit_bytes_per_second: limit,
        direct,
        sparse,
        network: network_terms(&network),
        ..VerifySpec::new(reference, Locator::parse(volume)?)
    };
    spec.check()?;
    let config = engine_config_for(&spec, config);
    Ok((spec, config))
}

/// Configures the engine: with exports more and smaller slots; with a receipt the blocks of the receipt.
fn engine_config_for(spec: &VerifySpec, config: EngineConfig) -> EngineConfig {
    let usual = match &spec.reference {
        Reference::Volume(reference) => usual_block(&[reference, &spec.volume], false),
        Reference::Receipt(_) => None,
    };
    EngineConfig { block_size: config.block_size.or(usual), ..config }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use blockhaul_engine::error::Code;
    use blockhaul_engine::volume::Locator;
    use clap::Parser;

    fn resolved(words: &[&str]) -> Result<VerifySpec> {
        let line = ["blockhaul", "verify"].iter().chain(words);
        let Command::Verify(raw) = Cli::try_parse_from(line).unwrap().command else { unreachable!("it says verify") };
        resolve(raw).map(|(spec, _)| spec)
    }

    #[test]
    fn a_comparison_takes_two_volumes_or_a_receipt_and_one() {
        let volume = |name| Locator::parse(name).unwrap();
        assert_eq!(resolved(&["a", "b"]).unwrap(), VerifySpec::new(Reference::Volume(volume("a")), volume("b")));
        assert_eq!(
            resolved(&["--receipt", "r", "b"]).unwrap(),
            VerifySpec::new(Reference::Receipt("r".into()), volume("b"))
        );
        for words in [&["a"][..], &["--receipt", "r", "a", "b"]] {
            assert_eq!(resolved(words).unwrap_err().code, Code::BadRequest, "{words:?}");
        }
    }
}
