//! Integration tests: the real binary, real sockets, real mounts, real and scripted registries.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::print_stdout)]

mod support;

#[path = "suite/access.rs"]
mod access;
#[path = "suite/archive_durability.rs"]
mod archive_durability;
#[path = "suite/archive_pulls.rs"]
mod archive_pulls;
#[path = "suite/archives.rs"]
mod archives;
#[path = "suite/authority.rs"]
mod authority;
#[path = "suite/cli.rs"]
mod cli;
#[path = "suite/daemonset.rs"]
mod daemonset;
#[path = "suite/debian.rs"]
mod debian;
#[path = "suite/differential.rs"]
mod differential;
#[path = "suite/differential_crates.rs"]
mod differential_crates;
#[path = "suite/documented.rs"]
mod documented;
#[path = "suite/durability.rs"]
mod durability;
#[path = "suite/exposed.rs"]
mod exposed;
#[path = "suite/families.rs"]
mod families;
#[path = "suite/faults.rs"]
mod faults;
#[path = "suite/hostile.rs"]
mod hostile;
#[path = "suite/hostile_formats.rs"]
mod hostile_formats;
#[path = "suite/killed.rs"]
mod killed;
#[path = "suite/lies.rs"]
mod lies;
#[path = "suite/logins.rs"]
mod logins;
#[path = "suite/memory.rs"]
mod memory;
#[path = "suite/merge.rs"]
mod merge;
#[path = "suite/messages.rs"]
mod messages;
#[path = "suite/model.rs"]
mod model;
#[path = "suite/model_families.rs"]
mod model_families;
#[path = "suite/odd_answers.rs"]
mod odd_answers;
#[path = "suite/odd_archives.rs"]
mod odd_archives;
#[path = "suite/odd_registries.rs"]
mod odd_registries;
#[path = "suite/old_stores.rs"]
mod old_stores;
#[path = "suite/publish.rs"]
mod publish;
#[path = "suite/read_only.rs"]
mod read_only;
#[path = "suite/real_registry.rs"]
mod real_registry;
#[path = "suite/registration.rs"]
mod registration;
#[path = "suite/rights.rs"]
mod rights;
#[path = "suite/rpc.rs"]
mod rpc;
#[path = "suite/targets.rs"]
mod targets;
#[path = "suite/tenants.rs"]
mod tenants;
#[path = "suite/tools.rs"]
mod tools;
#[path = "suite/wanted.rs"]
mod wanted;
