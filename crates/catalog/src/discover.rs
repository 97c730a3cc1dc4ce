//! Which tables are below the data roots.
//!
//! One rule, by what is *directly* in a folder (hidden and empty files do not count):
//!
//! | a folder with                                        | is                                   |
//! |------------------------------------------------------|--------------------------------------|
//! | `key=value` folders, with or without files           | a table                              |
//! | other folders, with or without files                 | a schema                             |
//! | files of one format, no folders                      | a table                              |
//! | files of several formats, no folders                 | a schema, each file a table          |
//! | `key=value` folders and other folders                | an error, said when it is queried    |
//! | nothing                                              | nothing                              |
//!
//! A root is always a container: its files are tables of schema `public`, its folders are judged by the rule. Only a root
//! that holds `key=value` folders is itself a table, named as its last part, and so is a root that is a file. Schemas do not
//! nest: below a schema each file and each folder is a table, and a folder there that is not one is an error of that name.
//! Names keep their case: `Orders.parquet` is asked for as `"Orders"`. Extensions that name no format are not looked at.

use std::sync::Arc;

use crate::SCHEMA;
use crate::config::Format;
use crate::error::Error;
use crate::files::{Entry, Level, Listing, Looked};
use crate::formats::FileName;
use crate::stores::Root;

/// Where a table was found.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) root: Arc<Root>,
    /// Path below the root.
    pub(crate) rel: String,
    /// The file, when the table is a single one.
    pub(crate) file: Option<Entry>,
}

impl Place {
    pub(crate) fn display(&self) -> String {
        self.root.display(&self.rel)
    }
}

/// A discovered name. `problem` is set when there is something, but not a table.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) problem: Option<Error>,
}

/// What the rule makes of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judged {
    Table,
    Schema,
    Mixed { hive: String, plain: String },
    Nothing,
}

/// The table above, as code.
pub(crate) fn judge(level: &Level) -> Judged {
    let hive = level.folders.iter().find(|name| is_hive(name));
    let plain = level.folders.iter().find(|name| !is_hive(name));
    let mut formats: Vec<Format> =
        level.files.iter().filter_map(|f| FileName::parse(f.name())).map(|n| n.format).collect();
    formats.sort_unstable();
    formats.dedup();
    match (hive, plain, formats.len()) {
        (Some(hive), Some(plain), _) => Judged::Mixed { hive: hive.clone(), plain: plain.clone() },
        (Some(_), None, _) | (None, None, 1) => Judged::Table,
        (None, Some(_), _) | (None, None, 2..) => Judged::Schema,
        (None, None, 0) => Judged::Nothing,
    }
}

/// Whether a folder's name is `key=value`.
pub(crate) fn is_hive(name: &str) -> bool {
    name.split_once('=').is_some_and(|(key, _)| !key.is_empty())
}

/// All candidates of one root, or only those of one name; in the latter case only the folders on the way are listed.
pub(crate) async fn candidates(
    listing: &Listing,
    root: &Arc<Root>,
    wanted: Option<(&str, &str)>,
) -> Result<Vec<Candidate>, Error> {
    let mut found = Search { listing, root, wanted, found: Vec::new() };
    match listing.look(root, false).await? {
        Looked::File(file) => {
            if let Some(name) = FileName::parse(root.name()) {
                let stem = name.stem.to_owned();
                found.add(SCHEMA, &stem, "", Some(file), None);
            }
        }
        Looked::Folder(level) => found.root(&level).await?,
    }
    Ok(found.found)
}

struct Search<'a> {
    listing: &'a Listing,
    root: &'a Arc<Root>,
    wanted: Option<(&'a str, &'a str)>,
    found: Vec<Candidate>,
}

impl Search<'_> {
    async fn root(&mut self, level: &Level) -> Result<(), Error> {
        match judge(level) {
            Judged::Mixed { hive, plain } => {
                let problem = mixed(self.root, "", &hive, &plain);
                let name = self.root.name().to_owned();
                self.add(SCHEMA, &name, "", None, Some(problem));
            }
            Judged::Table if level.folders.iter().any(|name| is_hive(name)) => {
                let name = self.root.name().to_owned();
                self.add(SCHEMA, &name, "", None, None);
                return Ok(());
            }
            _ => {}
        }
        self.files(SCHEMA, level);
        for folder in level.folders.iter().filter(|name| !is_hive(name)) {
            // It may be the table of that name, or the schema of that name.
            let may_be = |(schema, name): (&str, &str)| schema == folder || (schema == SCHEMA && name == folder);
            if !self.wanted.is_none_or(may_be) {
                continue;
            }
            let inner = self.listing.level(self.root, folder).await?;
            match judge(&inner) {
                Judged::Table => self.add(SCHEMA, folder, folder, None, None),
                Judged::Schema => self.schema(folder, &inner).await?,
                Judged::Mixed { hive, plain } => {
                    self.add(SCHEMA, folder, folder, None, Some(mixed(self.root, folder, &hive, &plain)));
                }
                Judged::Nothing => {}
            }
        }
        Ok(())
    }

    async fn schema(&mut self, schema: &str, level: &Level) -> Result<(), Error> {
        self.files(schema, level);
        for folder in &level.folders {
            if !self.wanted.is_none_or(|(s, name)| s == schema && name == folder) {
                continue;
            }
            let rel = format!("{schema}/{folder}");
            let inner = self.listing.level(self.root, &rel).await?;
            match judge(&inner) {
                Judged::Table => self.add(schema, folder, &rel, None, None),
                Judged::Schema => {
                    let problem = Error::Folder {
                        folder: self.root.display(&rel),
                        problem:
                            "it is in a schema, so it is a table, but it holds folders or files of several formats; \
                                  schemas do not nest: give it a data root of its own"
                                .to_owned(),
                    };
                    self.add(schema, folder, &rel, None, Some(problem));
                }
                Judged::Mixed { hive, plain } => {
                    self.add(schema, folder, &rel, None, Some(mixed(self.root, &rel, &hive, &plain)));
                }
                Judged::Nothing => {}
            }
        }
        Ok(())
    }

    fn files(&mut self, schema: &str, level: &Level) {
        for file in &level.files {
            if let Some(name) = FileName::parse(file.name()) {
                self.add(schema, name.stem, &file.rel, Some(file.clone()), None);
            }
        }
    }

    fn add(&mut self, schema: &str, name: &str, rel: &str, file: Option<Entry>, problem: Option<Error>) {
        if self.wanted.is_none_or(|wanted| wanted == (schema, name)) {
            self.found.push(Candidate {
                schema: schema.to_owned(),
                name: name.to_owned(),
                place: Place { root: self.root.clone(), rel: rel.to_owned(), file },
                problem,
            });
        }
    }
}

fn mixed(root: &Root, rel: &str, hive: &str, plain: &str) -> Error {
    Error::Folder {
        folder: root.display(rel),
        problem: format!(
            "it holds both {hive:?} (a partition of one table) and {plain:?} (a table of a schema); move one"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(names: &[&str]) -> Level {
        let mut level = Level::default();
        for name in names {
            match name.strip_suffix('/') {
                Some(folder) => level.folders.push(folder.to_owned()),
                None => level.files.push(Entry {
                    rel: (*name).to_owned(),
                    size: 1,
                    modified: chrono::DateTime::UNIX_EPOCH,
                    etag: None,
                    version: None,
                }),
            }
        }
        level
    }

    #[test]
    fn the_rule_as_a_table_of_cases() {
        let mixed = Judged::Mixed { hive: "k=1".into(), plain: "x".into() };
        let cases: &[(&[&str], Judged)] = &[
            (&[], Judged::Nothing),
            (&["README.md"], Judged::Nothing),
            (&["a.parquet"], Judged::Table),
            (&["a.parquet", "b.parq"], Judged::Table),
            (&["a.csv", "b.csv.gz", "c.tsv"], Judged::Table),
            (&["a.json", "b.ndjson.zst"], Judged::Table),
            (&["a.parquet", "b.csv"], Judged::Schema),
            (&["x/"], Judged::Schema),
            (&["x/", "a.parquet"], Judged::Schema),
            (&["k=1/"], Judged::Table),
            (&["k=1/", "k=2/"], Judged::Table),
            (&["k=1/", "a.parquet"], Judged::Table),
            (&["k=1/", "x/"], mixed),
            (&["=1/"], Judged::Schema),
        ];
        for (names, expected) in cases {
            assert_eq!(&judge(&level(names)), expected, "{names:?}");
        }
    }
}
