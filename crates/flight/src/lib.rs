//! Flight SQL on the wire: decode a call, ask the engine, encode its answer.
//!
//! Never: planning, running or reading anything (that is `engine`); deciding who somebody is (that is
//! `auth`). Only here is tonic's `Status` made.
//!
//! | module | its story |
//! |---|---|
//! | [`serve`] | the parts put together on a listener |
//! | `service` | the gRPC trait: each method only translates |
//! | `commands` | one file a command: its schema, its answer |
//! | `answer` | what DoGet answers: messages, and the status after them |
//! | `call` | who calls, in which session, until when |
//! | `ticket` | what DoGet needs, sealed |
//! | `status` | the one match from kind of error to gRPC code |
//! | `wire` | types, batches and uploads |
//! | `layers` | what happens to every call before a command sees it |
//! | `transport` | connections, TLS and their limits |
//! | `messages` | protobuf messages that arrow-flight lacks |

mod answer;
mod call;
mod commands;
mod config;
mod layers;
mod messages;
mod server;
mod service;
mod status;
mod ticket;
mod transport;
mod wire;

pub use config::Config;
pub use layers::Caller;
pub use server::{Error, serve, settings};
pub use ticket::open_for_fuzzing;
pub use transport::{
    BindError, ClientCertificate, Drained, INSECURE_WORDS, Limits, Stop, Tls, TlsError, TlsReloader, bind,
    exposure_problem,
};
pub use wire::{UploadError, UploadLimits, WireOptions, encode_for_bench, read_upload};
