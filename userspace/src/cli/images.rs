//! The arguments of the commands that keep images.

use std::path::PathBuf;

use clap::Args;

use crate::cgroup::Memory;

#[derive(Debug, Args)]
pub struct Inspect {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
    /// Check all images
    #[arg(long, conflicts_with = "image")]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct Rm {
    /// Names of images, or the beginnings of their digests
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
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
    /// If the file is cut short, keep what has arrived, and go on from there the next time
    #[arg(long)]
    pub resume: bool,
}

/// A number of bytes.
fn size(text: &str) -> Result<u64, String> {
    let Memory(bytes) = text.parse()?;
    Ok(bytes.unwrap_or(u64::MAX))
}
