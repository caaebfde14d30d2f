//! Generates the gRPC code from `proto/`, with a compiler written in Rust: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["csi/v1/csi.proto", "pluginregistration/v1/api.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // Their derived `Debug` would print the secrets; `csi::secretive` has one that does not.
        .skip_debug(["csi.v1.NodePublishVolumeRequest", "csi.v1.CreateVolumeRequest"])
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
