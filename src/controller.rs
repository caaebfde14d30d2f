//! `ocivol controller`: the process beside external-provisioner, which makes volumes of claims.

pub mod config;
pub mod run;
