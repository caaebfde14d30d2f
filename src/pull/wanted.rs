//! What a pull needs of a blob: the blob itself, or what it unpacks to.

use crate::layer::format::Profile;
use crate::layout::plan::Plan;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::store;
use crate::store::Store;
use crate::store::blobs::{Blob, Origin};
use crate::store::layers::{Layer, LayerKey};

use crate::pull::error::Error;

/// A blob, and the form it is needed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub blob: Descriptor,
    pub form: Form,
}

/// The form that a blob has in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// As it is.
    File,
    /// Unpacked.
    Layer {
        profile: Profile,
        /// The digest its uncompressed content has to have.
        content: Option<Digest>,
    },
}

/// A blob or layer of the store.
#[derive(Debug, Clone)]
pub(super) enum Stored {
    Blob(Blob),
    Layer(Layer),
}

impl Wanted {
    /// The blob as it is.
    pub fn file(blob: &Descriptor) -> Self {
        Self { blob: blob.clone(), form: Form::File }
    }

    /// Everything that `plan` needs, each once, larger first: the largest decides how long the pull takes.
    pub fn of(plan: &Plan) -> Vec<Self> {
        let files = plan.files().map(|(_, file)| Self::file(&file.blob));
        let archives = plan.archives().map(|archive| {
            let form = Form::Layer { profile: plan.profile(), content: archive.content.clone() };
            Self { blob: archive.blob.clone(), form }
        });
        let mut all: Vec<Self> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        all.extend(
            files
                .chain(archives)
                .filter(|wanted| seen.insert((wanted.blob.digest.clone(), wanted.form.clone()))),
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
            Form::File => Ok(store.blob(&self.blob.digest)?.map(Stored::Blob)),
            Form::Layer { profile, .. } => {
                let layer = store.layer(&LayerKey::new(&self.blob.digest, *profile))?;
                Ok(layer.map(Stored::Layer))
            }
        }
    }

    /// Whether `found` has the uncompressed content that is promised; `None` where nobody has looked, which needs the
    /// blob once more.
    ///
    /// # Errors
    /// [`Error::Unpack`] when it is known to be another. Only for who may read it: it says what is here.
    pub fn keeps_promise(&self, found: &Stored) -> Option<Result<(), Error>> {
        let (Form::Layer { content: Some(expected), .. }, Stored::Layer(layer)) = (&self.form, found) else {
            return Some(Ok(()));
        };
        let got = layer.contents.iter().find(|known| known.algorithm() == expected.algorithm())?;
        if got == expected {
            return Some(Ok(()));
        }
        let source = crate::unpack::error::Error::Content { expected: expected.clone(), got: got.clone() };
        Some(Err(Error::Unpack { digest: self.blob.digest.clone(), source }))
    }

    /// Notes that the blob was shown to be readable at `origin`.
    ///
    /// # Errors
    /// Those of the store.
    pub fn add_origin(&self, store: &Store, origin: Origin) -> Result<(), store::error::Error> {
        match &self.form {
            Form::File => store.add_origin(&self.blob.digest, origin),
            Form::Layer { profile, .. } => {
                store.add_layer_origin(&LayerKey::new(&self.blob.digest, *profile), origin)
            }
        }
    }
}

impl Stored {
    /// Bytes of the blob.
    pub fn size(&self) -> u64 {
        match self {
            Self::Blob(blob) => blob.size,
            Self::Layer(layer) => layer.size,
        }
    }

    /// Whether everybody may have it.
    pub fn public(&self) -> bool {
        match self {
            Self::Blob(blob) => blob.public,
            Self::Layer(layer) => layer.public,
        }
    }

    /// The repositories it came from, or was shown to be readable in.
    pub fn origins(&self) -> &[Origin] {
        match self {
            Self::Blob(blob) => &blob.origins,
            Self::Layer(layer) => &layer.origins,
        }
    }
}
