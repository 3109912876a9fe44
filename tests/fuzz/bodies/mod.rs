//! What the fuzz targets do with their input. The targets in `fuzz/` and the replay in `tests/fuzz` share it.

pub mod hostile_server;
mod input;
pub mod response_headers;
pub mod target_string;
pub mod timeouts_and_pushback;
