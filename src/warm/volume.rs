//! One volume that is warmed, a slice at a time.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::host::limits;
use crate::host::sys::FileMapping;
use crate::warm::budget::{WarmBudget, may_have};
use crate::warm::fill::Filler;
use crate::warm::order::{self, Content, WarmFile, WarmFiles};
use crate::warm::resident::resident;

/// What is warmed.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The directory that the volume shows, in the store.
    pub directory: PathBuf,
    /// What it holds.
    pub content: Content,
    /// Whether it is kept in memory as long as the volume is published.
    pub pinned: bool,
}

/// A volume that is being warmed.
#[derive(Debug)]
pub(in crate::warm) struct Warming {
    wanted: Wanted,
    /// Becomes true when nobody wants it any more.
    gone: Arc<AtomicBool>,
    /// Listed at the first slice.
    files: Option<Arc<WarmFiles>>,
    /// Which file is next, how far it is, and the file when it was begun.
    next: usize,
    offset: u64,
    open: Option<File>,
    /// Bytes of that file that were not in memory when it was begun, less those that were counted as read since. The disk's readahead
    /// brings more than was asked for: what it brought is counted at the end of the file.
    missing: u64,
    /// Bytes of the files that were looked at, and when it is time to see whether they stayed.
    passed: u64,
    look_at: u64,
    locked: Vec<FileMapping>,
    /// What came of it.
    pub sum: Sum,
}

/// Bytes of one volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Of all its files that are warmed.
    pub wanted: u64,
    /// That were read into memory.
    pub filled: u64,
    /// That are locked in memory.
    pub locked: u64,
    /// How many files are.
    pub mappings: u64,
    /// That the list of its files takes.
    pub names: u64,
}

/// What others have of what is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::warm) struct Shares {
    /// Namespaces that have volumes which are warmed.
    pub namespaces: usize,
    /// Bytes that this one has warmed, and has locked.
    pub own_filled: u64,
    pub own_locked: u64,
    /// Bytes that all have locked.
    pub all_locked: u64,
    /// Files that this one has locked, and all.
    pub own_mappings: u64,
    pub all_mappings: u64,
    /// Bytes of the lists of this one, and of all.
    pub own_names: u64,
    pub all_names: u64,
}

/// Why no more is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::warm) enum End {
    /// All of it is in memory.
    Complete,
    /// The namespace's share is used up.
    Budget,
    /// The namespace has as many names of files as it may.
    Names,
    /// The kernel drops as much as comes.
    Evicted,
    /// The volume is gone.
    Gone,
}

/// Bytes that are read before another namespace has its turn.
pub(in crate::warm) const SLICE: u64 = 64 << 20;
/// Bytes of which is looked whether they are in memory already.
const PIECE: u64 = 16 << 20;
/// Bytes after which is looked for the first time whether what came has stayed; then when an eighth more has come.
const FIRST_LOOK: u64 = 1 << 30;

impl Warming {
    pub fn new(wanted: Wanted, gone: Arc<AtomicBool>) -> Self {
        Self {
            wanted,
            gone,
            files: None,
            next: 0,
            offset: 0,
            open: None,
            missing: 0,
            passed: 0,
            look_at: FIRST_LOOK,
            locked: Vec::new(),
            sum: Sum::default(),
        }
    }

    /// What is warmed, from the first slice on.
    pub fn files(&self) -> Option<&Arc<WarmFiles>> {
        self.files.as_ref()
    }

    /// Reads the next slice of one file; `None` when there is more.
    ///
    /// # Errors
    /// What listing or reading the files fails with.
    pub fn step(&mut self, filler: &Filler, budget: WarmBudget, shares: Shares) -> io::Result<Option<End>> {
        let files = match &self.files {
            Some(files) => Arc::clone(files),
            None => {
                let files = Arc::new(order::files(&self.wanted.directory, self.wanted.content)?);
                if !may_have(shares.own_names, shares.all_names, files.memory(), limits::WARM_NAMES) {
                    return Ok(Some(End::Names));
                }
                self.sum.names = files.memory();
                self.sum.wanted = files.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
                Arc::clone(self.files.insert(files))
            }
        };
        let Some(file) = files.files.get(self.next) else { return Ok(Some(End::Complete)) };
        let opened = match self.open.take() {
            Some(opened) => opened,
            None => {
                let opened = File::open(files.directory.join(&file.name))?;
                self.missing = file.size - resident(&opened, 0..file.size)?.min(file.size);
                if self.missing == 0 {
                    self.offset = file.size;
                }
                opened
            }
        };
        let end = file.size.min(self.offset + SLICE);
        let mut filled = 0;
        while self.offset < end {
            if self.gone.load(Ordering::Relaxed) {
                return Ok(Some(End::Gone));
            }
            let allowance = budget.allowance(shares.own_filled + filled, shares.namespaces);
            if allowance == 0 {
                return Ok(Some(End::Budget));
            }
            let piece = self.offset..end.min(self.offset + PIECE.min(allowance));
            let length = piece.end - piece.start;
            self.offset = piece.end;
            if resident(&opened, piece.clone())? < length {
                filler.fill(&opened, piece)?;
                let came = length.min(self.missing);
                (self.missing, filled) = (self.missing - came, filled + came);
                self.sum.filled += came;
            }
        }
        if self.offset < file.size {
            self.open = Some(opened);
            return Ok(None);
        }
        self.sum.filled += std::mem::take(&mut self.missing);
        (self.next, self.offset) = (self.next + 1, 0);
        self.passed += file.size;
        if self.wanted.pinned {
            self.pin(&opened, file, budget, shares);
        }
        if self.passed >= self.look_at {
            self.look_at = self.passed + (self.passed / 8).max(FIRST_LOOK);
            if !self.has_stayed(&files)? {
                return Ok(Some(End::Evicted));
            }
        }
        Ok((self.next == files.files.len()).then_some(End::Complete))
    }

    /// Locks `file` in memory, if the budget has room for it: what comes first is what is needed first.
    fn pin(&mut self, opened: &File, file: &WarmFile, budget: WarmBudget, shares: Shares) {
        if !budget.may_pin(shares.own_locked, shares.all_locked, file.size)
            || !may_have(shares.own_mappings, shares.all_mappings, 1, limits::WARM_MAPPINGS)
        {
            tracing::debug!(file = %file.name.display(), "not locked in memory: the budget for it is used up");
            return;
        }
        let locked = FileMapping::new(opened.as_fd(), 0, file.size).and_then(|mapping| {
            mapping.lock()?;
            Ok(mapping)
        });
        match locked {
            Ok(mapping) => {
                self.locked.push(mapping);
                self.sum.locked += file.size;
                self.sum.mappings += 1;
            }
            Err(error) => {
                tracing::warn!(%error, file = %file.name.display(), "cannot lock a file in memory");
            }
        }
    }

    /// Whether at least half of the files that were passed is in memory.
    fn has_stayed(&self, files: &WarmFiles) -> io::Result<bool> {
        let mut here = 0;
        for file in files.files.iter().take(self.next) {
            here += resident(&File::open(files.directory.join(&file.name))?, 0..file.size)?;
        }
        Ok(here >= self.passed / 2)
    }
}
