//! Generates the demo service, and only where examples, tests or benches are built.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "__demo")]
    demo()?;
    Ok(())
}

/// protox parses the files itself, so no `protoc` is needed on the machine.
#[cfg(feature = "__demo")]
fn demo() -> Result<(), Box<dyn std::error::Error>> {
    let file = "equipoise/demo/v1/greeter.proto";
    println!("cargo:rerun-if-changed=proto/{file}");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
