//! What people ask, in their words: each question is one type, whose fields are the command's flags and the request's query.
//!
//! - [`selection`]: which sessions are meant
//! - [`look`]: which frames are looked at, and for how long
//! - [`imagined`]: a packet that is only imagined

pub mod imagined;
pub mod look;
pub mod selection;
