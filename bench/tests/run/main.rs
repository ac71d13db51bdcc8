//! The program itself, over tiny volumes: with the real rivals, with false ones, and stopped half way.
#![forbid(unsafe_code)]

mod rivals;
mod scenarios;
mod stopping;
mod support;
