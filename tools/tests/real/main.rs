//! Tests the program on a real system: crashes, faults and hazards on real file systems and loop devices. A test whose
//! host lacks something (root, a file system, a program) is skipped by name.

#![forbid(unsafe_code)]

mod crash_anywhere;
mod crash_between_steps;
mod every_pair;
mod fault_destination;
mod fault_device;
mod fault_replaced;
mod fault_rights;
mod fault_source;
mod fault_space;
mod hazard_failing_calls;
mod hazard_journals;
mod hazard_live_sources;
mod hazard_no_fallocate;
mod hazard_old_data;
mod hazard_signals;
mod hazard_streams;
mod hazard_wrong_maps;
mod power_cut;
mod support;
