//! Families of artifacts, and the tools that make them.

mod documented;
mod families;
mod model_families;
mod tools;
