//! What registries send, and how they are asked.

mod addresses;
mod breaks;
mod connections;
mod credential_sources;
mod debian_registry;
mod faults;
mod hosts_files;
mod image_layouts;
mod logins;
mod matrix;
mod mirrors;
mod needed_content;
mod odd_answers;
mod odd_registries;
mod plain_http;
mod proxies;
mod referrers;
mod tls;
mod token_expiry;
mod wrong_answers;
