//! What a pull needs of a blob: the blob itself, or what it unpacks to.

use std::collections::HashSet;

use crate::layer::format::Profile;
use crate::layout::plan::Plan;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::registry::source::Source;
use crate::store::access::origin::Origin;
use crate::store::content::blobs::Blob;
use crate::store::content::layer::Layer;
use crate::store::key::LayerKey;
use crate::store::open::Store;
use crate::transfer::error::Error;
use crate::{store, unpack};

/// A blob, and the form it is needed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Which.
    pub blob: Descriptor,
    /// How.
    pub form: Form,
    /// What people call it: the file it becomes, or a part of its digest.
    pub name: Box<str>,
}

/// Characters of a name, from its end.
const NAME_LIMIT: usize = 64;

/// The form that a blob has in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Form {
    /// As it is.
    File,
    /// Unpacked.
    Layer {
        /// How its archive is read.
        profile: Profile,
        /// The digest its uncompressed content has to have.
        content: Option<Digest>,
    },
    /// Not at all: it is read from one source and compared with its digest, which shows that who asks there may have it.
    Nothing,
}

/// Whether a layer has the uncompressed content that its image promises.
#[derive(Debug)]
pub enum Promise {
    /// It has, or nothing is promised.
    Kept,
    /// It has another.
    Broken(Error),
    /// Nobody has looked, which needs the blob once more.
    Unknown,
}

/// A blob or layer of the store.
#[derive(Debug, Clone)]
pub enum Stored {
    /// A file.
    Blob(Blob),
    /// Unpacked.
    Layer(Layer),
    /// It was read, and had the right digest.
    Nothing,
}

impl Needed {
    /// The blob in this form.
    pub fn new(blob: &Descriptor, form: Form) -> Self {
        Self { blob: blob.clone(), form, name: blob.digest.short().to_string().into() }
    }

    /// The blob as it is.
    pub fn file(blob: &Descriptor) -> Self {
        Self::new(blob, Form::File)
    }

    /// The blob in every form in which the store may have its content.
    pub fn in_any_form(blob: &Descriptor) -> [Self; 3] {
        let unpacked = |profile| Self::new(blob, Form::Layer { profile, content: None });
        [Self::file(blob), unpacked(Profile::Image), unpacked(Profile::Archive)]
    }

    fn named(self, path: &str) -> Self {
        let skipped = path.chars().count().saturating_sub(NAME_LIMIT);
        Self { name: path.chars().skip(skipped).collect::<String>().into(), ..self }
    }

    /// Everything that `plan` needs, each once, larger first: the largest decides how long the pull takes.
    pub fn of(plan: &Plan) -> Vec<Self> {
        let files = plan.files().map(|(path, file)| Self::file(&file.blob).named(path.as_str()));
        let archives = plan.archives().map(|archive| {
            let form = Form::Layer { profile: plan.profile(), content: archive.content.clone() };
            Self::new(&archive.blob, form)
        });
        let mut all: Vec<Self> = Vec::new();
        let mut seen = HashSet::new();
        all.extend(
            files
                .chain(archives)
                .filter(|needed| seen.insert((needed.blob.digest.clone(), needed.form.clone()))),
        );
        all.sort_by(|one, two| {
            two.blob.size.cmp(&one.blob.size).then_with(|| one.blob.digest.cmp(&two.blob.digest))
        });
        all
    }

    /// What the store has of it.
    ///
    /// # Errors
    /// Those of the store.
    pub fn find(&self, store: &Store) -> Result<Option<Stored>, store::error::Error> {
        match &self.form {
            Form::File => Ok(store.blobs.get(&self.blob.digest)?.map(Stored::Blob)),
            Form::Layer { profile, .. } => {
                let layer = store.layers.get(&LayerKey::new(&self.blob.digest, *profile))?;
                Ok(layer.map(Stored::Layer))
            }
            Form::Nothing => Ok(None),
        }
    }

    /// Whether `found` has the uncompressed content that is promised. A broken promise is only for who may read the blob: it
    /// says what is here.
    pub fn promise(&self, found: &Stored) -> Promise {
        let (Form::Layer { content: Some(expected), .. }, Stored::Layer(layer)) = (&self.form, found) else {
            return Promise::Kept;
        };
        match layer.contents.iter().find(|known| known.algorithm() == expected.algorithm()) {
            None => Promise::Unknown,
            Some(got) if got == expected => Promise::Kept,
            Some(got) => {
                let (expected, got) = (expected.clone(), got.clone());
                let source = unpack::error::Error::Content { expected, got };
                Promise::Broken(Error::Unpack { digest: self.blob.digest.clone(), source })
            }
        }
    }

    /// Notes that the blob was shown to be readable at `origin`.
    ///
    /// # Errors
    /// Those of the store.
    pub fn add_origin(&self, store: &Store, origin: Origin) -> Result<(), store::error::Error> {
        match &self.form {
            Form::File => store.blobs.add_origin(&self.blob.digest, origin),
            Form::Layer { profile, .. } => {
                store.layers.add_origin(&LayerKey::new(&self.blob.digest, *profile), origin)
            }
            Form::Nothing => Ok(()),
        }
    }
}

impl Stored {
    /// Bytes of the blob.
    pub fn size(&self) -> u64 {
        match self {
            Self::Blob(blob) => blob.size,
            Self::Layer(layer) => layer.size,
            Self::Nothing => 0,
        }
    }

    /// Whether everybody may have it.
    pub fn public(&self) -> bool {
        match self {
            Self::Blob(blob) => blob.public,
            Self::Layer(layer) => layer.public,
            Self::Nothing => false,
        }
    }

    /// The repositories it came from, or was shown to be readable in.
    pub fn origins(&self) -> &[Origin] {
        match self {
            Self::Blob(blob) => &blob.origins,
            Self::Layer(layer) => &layer.origins,
            Self::Nothing => &[],
        }
    }

    /// Whether the source may read it without asking anybody; its right to the manifest in its own repository has been shown
    /// before.
    pub fn is_rightful(&self, source: &Source) -> bool {
        self.public() || self.origins().iter().any(|origin| origin.repository == source.repository)
    }
}

/// `source` as what the store remembers of it.
pub fn origin(source: &Source) -> Origin {
    Origin { repository: source.repository.clone(), anonymous: source.credential.is_none() }
}
