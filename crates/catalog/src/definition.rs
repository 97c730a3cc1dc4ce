//! From a table's definition to the files that are in it now.

use std::sync::Arc;

use crate::config::{Format, TableConfig};
use crate::discover::{Place, is_hive};
use crate::error::Error;
use crate::files::{Entry, Listing, Looked};
use crate::formats::{FileName, glob_matches};
use crate::stores::Root;

/// A table by name: where it is, and how it is read.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) places: Places,
    pub(crate) config: TableConfig,
}

/// Where the files of a table are.
#[derive(Debug, Clone)]
pub(crate) enum Places {
    /// Found below a data root.
    Discovered(Place),
    /// Named in the settings.
    Configured(Vec<Arc<Root>>),
}

/// A file of a table.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) root: Arc<Root>,
    pub(crate) entry: Entry,
    /// Path below the table's folder; its `key=value` parts are partition columns.
    pub(crate) path: String,
}

impl Definition {
    /// `schema.name`, for messages.
    pub(crate) fn table(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// The files of the table as they are now, and their format.
    pub(crate) async fn members(&self, listing: &Listing) -> Result<(Format, Vec<Member>), Error> {
        let mut members = Vec::new();
        match &self.places {
            Places::Discovered(place) => {
                let looked = match &place.file {
                    Some(file) => Looked::File(file.clone()),
                    None => Looked::Folder(listing.walk(&place.root, &place.rel).await?),
                };
                self.add(&place.root, &place.rel, looked, &mut members)?;
            }
            Places::Configured(roots) => {
                for root in roots {
                    self.add(root, "", listing.look(root, true).await?, &mut members)?;
                }
            }
        }
        let invalid = |problem: String| Error::Table { table: self.table(), problem };
        let format_of = |member: &Member| {
            let name = if member.entry.rel.is_empty() { member.root.name() } else { member.entry.name() };
            self.config.format.or_else(|| FileName::parse(name).map(|name| name.format))
        };
        let Some(first) = members.first() else {
            return Err(invalid(
                "has no files; hint: check location and files of the table, and the folder".to_owned(),
            ));
        };
        let show = |member: &Member| member.root.display(&member.entry.rel);
        let unknown = |member: &Member| {
            invalid(format!("the format of file {} is not known from its name; set format", show(member)))
        };
        let format = format_of(first).ok_or_else(|| unknown(first))?;
        for member in &members {
            let other = format_of(member).ok_or_else(|| unknown(member))?;
            if other != format {
                return Err(invalid(format!(
                    "file {} is {other:?}, but file {} is {format:?}; keep one format per table, or choose with `files`",
                    show(member),
                    show(first),
                )));
            }
        }
        Ok((format, members))
    }

    fn add(&self, root: &Arc<Root>, rel: &str, looked: Looked, members: &mut Vec<Member>) -> Result<(), Error> {
        let level = match looked {
            Looked::File(entry) => {
                members.push(Member { root: root.clone(), path: entry.name().to_owned(), entry });
                return Ok(());
            }
            Looked::Folder(level) => level,
        };
        let discovered = matches!(self.places, Places::Discovered(_));
        let skip = if rel.is_empty() { 0 } else { rel.len() + 1 };
        for entry in &level.files {
            let path = entry.rel.get(skip..).unwrap_or_default();
            let chosen = match (&self.config.files, self.config.format) {
                (Some(pattern), _) => glob_matches(pattern, path),
                (None, Some(format)) => FileName::parse(path).is_none_or(|name| name.format == format),
                (None, None) => FileName::parse(entry.name()).is_some(),
            };
            if !chosen {
                continue;
            }
            let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
            let plain = folders.split('/').find(|part| !part.is_empty() && !is_hive(part));
            if let Some(plain) = plain.filter(|_| discovered) {
                return Err(Error::Folder {
                    folder: root.display(rel),
                    problem: format!("below its key=value folders is {plain:?}, which is none; move or rename it"),
                });
            }
            members.push(Member { root: root.clone(), entry: entry.clone(), path: path.to_owned() });
        }
        Ok(())
    }
}
