//! Tests the program over tiny volumes: with real rivals, with fake ones, and interrupted.
#![forbid(unsafe_code)]

mod consistency;
mod rivals;
mod scenarios;
mod stopping;
mod support;
