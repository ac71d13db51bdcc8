//! Tests the program over tiny volumes: with real rivals, with fake ones, and interrupted.
#![forbid(unsafe_code)]

mod rivals;
mod scenarios;
mod stopping;
mod support;
