//! The arguments of the commands that keep images.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args};

use super::Keys;
use crate::{cgroup::Memory, store::Rules};

#[derive(Debug, Args)]
pub struct Inspect {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
    #[command(flatten)]
    pub keys: Keys,
}

#[derive(Debug, Args)]
pub struct Open {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
    #[command(flatten)]
    pub keys: Keys,
}

#[derive(Debug, Args)]
pub struct Close {
    /// Names of images, or the beginnings of their digests
    #[arg(required_unless_present = "all", value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Close all
    #[arg(long, conflicts_with = "images")]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
    /// Check all images
    #[arg(long, conflicts_with = "image")]
    pub all: bool,
    #[command(flatten)]
    pub keys: Keys,
}

#[derive(Debug, Args)]
pub struct Rm {
    /// Names of images, or the beginnings of their digests
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Diff {
    /// Name of the image before, or the beginning of its digest
    pub before: String,
    /// Name of the image after, or the beginning of its digest
    pub after: String,
    #[command(flatten)]
    pub keys: Keys,
}

#[derive(Debug, Args)]
pub struct Export {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
    /// Write to this file, or to standard output if it is `-`
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub struct Import {
    /// The file, or `-` for standard input
    pub file: PathBuf,
    /// Name of the image [default: that of the archive, if no other image has it]
    #[arg(long)]
    pub name: Option<String>,
    /// Refuse an image that is larger, in bytes or with K, M or G [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_size: Option<u64>,
    /// If the file is cut short, keep what has arrived, and go on from there the next time; of an
    /// encrypted image nothing is kept
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub keys: Keys,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("rules").required(true).multiple(true)))]
pub struct Prune {
    /// Keep the newest N images, whatever else is said; without another rule, remove the others
    #[arg(long, value_name = "N", group = "rules")]
    pub keep: Option<usize>,
    /// Remove images that are older, as 7d or 12h
    #[arg(long, value_name = "TIME", group = "rules", value_parser = age)]
    pub older_than: Option<Duration>,
    /// Remove the oldest until the rest is no larger, in bytes or with K, M or G
    #[arg(long, value_name = "SIZE", group = "rules", value_parser = size)]
    pub max_size: Option<u64>,
    /// Remove images with a name as well
    #[arg(long)]
    pub all: bool,
    /// Only tell what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

impl Prune {
    pub fn rules(&self) -> Rules {
        Rules {
            keep: self.keep,
            older_than: self.older_than,
            max_bytes: self.max_size,
            named: self.all,
        }
    }
}

/// A number of bytes.
fn size(text: &str) -> Result<u64, String> {
    let Memory(bytes) = text.parse()?;
    Ok(bytes.unwrap_or(u64::MAX))
}

fn age(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; an age is such as 12h or 7d"))
}
