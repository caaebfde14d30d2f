//! The content-addressed store on disk: verified blobs, and trees linked from them.
//!
//! ```text
//! <root>/                    0700
//!   lock                     held by the one process that writes; names its holder
//!   v1/                      this format
//!     ingest/                in flight, trusted by nobody; survives restarts of the process, not of the machine
//!     blobs/<alg>/<hex>      a verified blob; its record is <hex>.json beside it
//!     layers/<key>/          an unpacked archive; its record is <key>.json beside it
//!     trees/<key>/fs         what pods see, where a layer alone is not it
//!     images/<key>.json      the record of a tree
//!     durable/               which records are known to be on the disk
//!     facts/                 what is learnt of an entry after it was recorded: origins, references, last use
//!     volumes/<sha256>.json  published targets
//!     leases/                trees that a command on the node has mounted
//!     tags/ proofs/          what references resolved to; who has shown a right to what
//! ```
//!
//! *The name is the proof:* outside `ingest/` an entry exists only if its content is complete and verified and a
//! readable record belongs to it. Publishing is one rename; the record comes last.
//!
//! *Durability:* publishing does not wait for the disk. A record carries the kernel's boot ID, and an entry becomes
//! *durable* when a background `syncfs` has covered it ([`durable::flush`]). A record is written once and never replaced. An
//! entry that is not durable is discarded after a reboot; another process of the same boot first hashes a blob, compares a
//! layer with its index, and links a tree again.
//!
//! Each directory has one owner: [`content::blobs`], [`content::layers`], [`content::trees`], [`content::ingest`],
//! [`access::grants`], [`access::tags`], [`usage::volumes`], [`usage::leases`]. [`open`] puts them together.
//!
//! Everything here blocks; async code calls it through [`crate::host::blocking`].

pub mod access;
pub mod collect;
pub mod content;
pub mod disk;
pub mod durable;
pub mod error;
pub mod fsck;
pub mod inventory;
pub mod key;
pub mod lock;
pub mod open;
pub mod space;
pub mod usage;
