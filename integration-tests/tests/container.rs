//! What the image of the server is built from: no container is needed to see that it is all there.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::MetadataCommand;
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn dockerfile() -> String {
    std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap()
}

/// What comes after `instruction` in the Dockerfile, line by line.
fn instructions<'a>(dockerfile: &'a str, instruction: &str) -> Vec<&'a str> {
    dockerfile.lines().filter_map(|line| line.strip_prefix(instruction)?.strip_prefix(' ')).collect()
}

/// The files that `docker build` gets to see, in a folder of their own.
fn context() -> TempDir {
    let context = tempfile::tempdir().unwrap();
    let ignored = std::fs::read_to_string(root().join("deploy/Dockerfile.dockerignore")).unwrap();
    let mut lines = ignored.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), "nothing but what is named");
    for line in lines {
        let path = line.strip_prefix('!').unwrap_or_else(|| panic!("{line}: this test knows only what is let through"));
        copy(&root().join(path), &context.path().join(path));
    }
    context
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in std::fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name));
        }
        return;
    }
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}

#[test]
fn what_the_image_is_built_from_is_a_whole_workspace() {
    let context = context();
    let dockerfile = dockerfile();
    let [build] = instructions(&dockerfile, "RUN cargo")[..] else { panic!("one build in {dockerfile}") };
    let words: Vec<&str> = build.split(' ').collect();
    let after = |word: &str| words[words.iter().position(|found| *found == word).unwrap() + 1];

    // With the lock file as it is, and all the crates it names.
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--package", after("-p")])
        .current_dir(context.path())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));

    let metadata = MetadataCommand::new().current_dir(context.path()).no_deps().exec().unwrap();
    let package = metadata.packages.iter().find(|package| package.name == after("-p")).unwrap();
    let binary = package.targets.iter().find(|target| target.is_bin()).unwrap();
    assert!(binary.src_path.exists());
    let manifest = std::fs::read_to_string(context.path().join("Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("[profile.{}]", after("--profile"))));
    let [folder] = instructions(&dockerfile, "WORKDIR")[..] else { panic!("one folder in {dockerfile}") };
    let built = format!("--from=build {folder}/target/{}/{} ", after("--profile"), binary.name);
    let copied = instructions(&dockerfile, "COPY");
    assert!(copied.len() == 2 && copied[0] == ". ." && copied[1].starts_with(&built), "{copied:?} has not {built}");
}
