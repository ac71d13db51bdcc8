//! The dispatcher over a simulated ensemble, with runners that do what the test says.

mod clients;
mod golden;
mod losses;
mod stage;
