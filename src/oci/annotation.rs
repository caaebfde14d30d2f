//! Keys of annotations that more than one kind of artifact has.

/// The name of a layer's file. Source: image-spec annotations.md.
pub const TITLE: &str = "org.opencontainers.image.title";
/// The path of a layer's file in a model. Source: model-spec annotations.md.
pub const FILEPATH: &str = "org.cncf.model.filepath";
