//! One volume that is warmed, a slice at a time.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::host::limits;
use crate::warm::budget::{WarmBudget, may_have};
use crate::warm::fill::Filler;
use crate::warm::order::{self, Content, WarmFile, WarmFiles};
use crate::warm::pins::{Identity, Pinned, Pins};
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
    /// Bytes of that file that were not in memory when it was begun. They count as read part by part, in proportion: the disk's
    /// readahead brings more than was asked for.
    missing: u64,
    /// Whether that file is going to be locked, which `warm.budget` has nothing to say of.
    is_pinned: bool,
    /// Bytes of the files that were looked at, and when it is time to see whether they stayed.
    passed: u64,
    look_at: u64,
    locked: Vec<Arc<Pinned>>,
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
    /// That the list of its files takes.
    pub names: u64,
}

/// What others have of what is shared.
#[derive(Debug)]
pub(in crate::warm) struct Shares {
    /// Namespaces that have volumes which are warmed.
    pub namespaces: usize,
    /// Bytes that this one has warmed.
    pub own_filled: u64,
    /// What is locked.
    pub pins: Pins,
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
    /// The node is short of memory.
    Memory,
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
            is_pinned: false,
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

    /// What it has locked.
    pub fn locked(&self) -> &[Arc<Pinned>] {
        &self.locked
    }

    /// Whether not all is locked that should be.
    pub fn lacks_locks(&self) -> bool {
        self.wanted.pinned && self.sum.locked < self.sum.wanted
    }

    /// Begins again, with what it has: what is in memory, or locked, costs a look for each file.
    pub fn begin_again(&mut self) {
        (self.next, self.offset, self.open) = (0, 0, None);
        (self.passed, self.look_at) = (0, FIRST_LOOK);
    }

    /// Reads the next slice of one file; `None` when there is more.
    ///
    /// # Errors
    /// What listing or reading the files fails with.
    pub fn step(&mut self, filler: &Filler, budget: WarmBudget, shares: &Shares) -> io::Result<Option<End>> {
        let files = match &self.files {
            Some(files) => Arc::clone(files),
            None => match self.list(shares)? {
                Ok(files) => files,
                Err(end) => return Ok(Some(end)),
            },
        };
        let Some(file) = files.files.get(self.next) else { return Ok(Some(End::Complete)) };
        let opened = match self.open.take() {
            Some(opened) => opened,
            None => self.begin(&files, file, budget, shares)?,
        };
        let end = file.size.min(self.offset + SLICE);
        let mut filled = 0;
        while self.offset < end {
            if self.gone.load(Ordering::Relaxed) {
                return Ok(Some(End::Gone));
            }
            let mut piece = self.offset..end.min(self.offset + PIECE);
            if !self.is_pinned {
                let allowance = budget.allowance(shares.own_filled + filled, shares.namespaces);
                if allowance == 0 {
                    return Ok(Some(End::Budget));
                }
                piece.end = piece.end.min(piece.start.saturating_add(allowance));
            }
            let length = piece.end - piece.start;
            let came = u128::from(self.missing) * u128::from(length) / u128::from(file.size.max(1));
            filled += u64::try_from(came).unwrap_or(length);
            self.sum.filled += u64::try_from(came).unwrap_or(length);
            self.offset = piece.end;
            if resident(&opened, piece.clone())? < length {
                filler.fill(&opened, piece)?;
            }
        }
        if self.offset < file.size {
            self.open = Some(opened);
            return Ok(None);
        }
        (self.next, self.offset) = (self.next + 1, 0);
        self.passed += file.size;
        if self.is_pinned {
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

    /// Lists the files, or says why they are not warmed.
    fn list(&mut self, shares: &Shares) -> io::Result<Result<Arc<WarmFiles>, End>> {
        let Some(files) = order::files(&self.wanted.directory, self.wanted.content, &self.gone)? else {
            return Ok(Err(End::Gone));
        };
        if !may_have(shares.own_names, shares.all_names, files.memory(), limits::WARM_NAMES) {
            return Ok(Err(End::Names));
        }
        self.sum.names = files.memory();
        self.sum.wanted = files.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        Ok(Ok(Arc::clone(self.files.insert(Arc::new(files)))))
    }

    /// Opens `file`, and looks what of it is to be done.
    fn begin(
        &mut self,
        files: &WarmFiles,
        file: &WarmFile,
        budget: WarmBudget,
        shares: &Shares,
    ) -> io::Result<File> {
        let opened = File::open(files.directory.join(&file.name))?;
        let identity = Identity::of(&opened)?;
        let has_it = self.locked.iter().any(|pinned| pinned.identity == identity);
        self.is_pinned = self.wanted.pinned && !has_it && shares.pins.may_lock(budget, identity, file.size);
        self.missing = file.size - resident(&opened, 0..file.size)?.min(file.size);
        if self.missing == 0 {
            self.offset = file.size;
        }
        Ok(opened)
    }

    /// Locks `file` in memory, unless the room for it has gone meanwhile. What comes first is what is needed first.
    fn pin(&mut self, opened: &File, file: &WarmFile, budget: WarmBudget, shares: &Shares) {
        let lock = || {
            let identity = Identity::of(opened)?;
            if !shares.pins.may_lock(budget, identity, file.size) {
                return Ok(None);
            }
            match shares.pins.get(identity) {
                Some(pinned) => Ok(Some(Arc::clone(pinned))),
                None => Ok(Pinned::lock(opened, file.size, &self.gone)?.map(Arc::new)),
            }
        };
        match lock() {
            Ok(Some(pinned)) => {
                self.locked.push(pinned);
                self.sum.locked += file.size;
            }
            Ok(None) => {}
            Err(error) => {
                let error: io::Error = error;
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
