//! Generates Rust from `/proto`. Needs `protoc` (Debian: `protobuf-compiler`).

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=../../proto");
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .compile_protos(&["../../proto/updraft/v1/sealed.proto"], &["../../proto"])
}
