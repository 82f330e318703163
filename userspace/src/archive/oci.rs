//! The documents in an archive besides the image's own manifest: those of the OCI image
//! specification, and those that checkpointctl reads.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Refusal, Sha256};
use crate::store::{Image, Manifest};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE_TYPE: &str = "application/vnd.warmimg.image.v1";
const CONFIG_TYPE: &str = "application/vnd.warmimg.manifest.v1+json";
const FILE_TYPE: &str = "application/vnd.warmimg.file.v1";

/// The name of a file, of the annotations that OCI defines.
const TITLE: &str = "org.opencontainers.image.title";
/// The name of an image in an index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const LAYOUT_VERSION: &str = "1.0.0";

type Annotations = BTreeMap<String, String>;

/// Something that a document refers to by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

impl Descriptor {
    fn new(media_type: &str, blob: &Blob) -> Self {
        Self {
            media_type: media_type.to_owned(),
            artifact_type: None,
            digest: format!("sha256:{}", blob.sha256),
            size: blob.bytes,
            annotations: Annotations::new(),
        }
    }

    fn is(&self, blob: &Blob) -> bool {
        self.digest.strip_prefix("sha256:") == Some(&blob.sha256) && self.size == blob.bytes
    }
}

/// A file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// In hexadecimal.
    pub sha256: String,
    pub bytes: u64,
}

impl Blob {
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            sha256: Sha256::of(bytes),
            bytes: bytes.len() as u64,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciManifest {
    schema_version: u32,
    media_type: String,
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Descriptor>,
}

/// The OCI manifest of an image: the image's own manifest is its configuration, and each of its
/// files, by its name in the archive, is a layer.
pub fn manifest(image: &Image, own: &Blob, files: &[(String, Blob)]) -> Value {
    let layer = |(name, blob): &(String, Blob)| Descriptor {
        annotations: [(TITLE.to_owned(), name.clone())].into(),
        ..Descriptor::new(FILE_TYPE, blob)
    };
    json!(OciManifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: Some(IMAGE_TYPE.to_owned()),
        config: Descriptor::new(CONFIG_TYPE, own),
        layers: files.iter().map(layer).collect(),
        annotations: annotations(image),
    })
}

/// The index of an archive.
pub fn index(image: &Image, manifest: &Blob) -> Value {
    let mut annotations = annotations(image);
    annotations.insert(REF_NAME.to_owned(), image.label().to_owned());
    json!(Index {
        schema_version: 2,
        media_type: INDEX_TYPE.to_owned(),
        manifests: vec![Descriptor {
            artifact_type: Some(IMAGE_TYPE.to_owned()),
            annotations,
            ..Descriptor::new(MANIFEST_TYPE, manifest)
        }],
    })
}

pub fn layout() -> Value {
    json!({ "imageLayoutVersion": LAYOUT_VERSION })
}

/// As CRIU's project names them, see checkpointctl's lib/annotations.go.
fn annotations(image: &Image) -> Annotations {
    let Manifest { host, criu, .. } = &image.manifest;
    let version = env!("CARGO_PKG_VERSION");
    [
        ("engine.name", "warmimg"),
        ("engine.version", version),
        ("container.name", image.label()),
        ("runtime.name", "warmimg"),
        ("runtime.version", version),
        ("criu.version", &criu.version.to_string()),
        ("host.arch", &host.architecture),
        ("host.kernel", &host.kernel),
    ]
    .into_iter()
    .map(|(key, value)| (format!("org.criu.checkpoint.{key}"), value.to_owned()))
    .chain([(
        "org.opencontainers.image.created".to_owned(),
        created(&image.manifest),
    )])
    .collect()
}

/// checkpointctl's `ContainerConfig`.
pub fn config_dump(image: &Image) -> Value {
    let created = created(&image.manifest);
    json!({
        "id": image.digest.as_str(),
        "name": image.label(),
        "rootfsImageName": image.manifest.command.words.first(),
        "runtime": "warmimg",
        "createdTime": created,
        "checkpointedTime": created,
        "restored": false,
    })
}

/// The specification of the container, for checkpointctl: it takes the name from an annotation.
pub fn spec_dump(image: &Image) -> Value {
    let mut annotations = annotations(image);
    annotations.insert(
        "io.kubernetes.cri.container-name".to_owned(),
        image.label().to_owned(),
    );
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "args": image.manifest.command.words,
            "cwd": image.manifest.command.working_directory,
        },
        "annotations": annotations,
    })
}

fn created(manifest: &Manifest) -> String {
    humantime::format_rfc3339_seconds(manifest.created()).to_string()
}

/// The seconds of the Unix epoch, which archives have as the time of all their files.
pub fn modified(manifest: &Manifest) -> u64 {
    Duration::from_millis(manifest.created_ms).as_secs()
}

/// The name that `config.dump` gives the image.
///
/// # Errors
/// [`Refusal::Invalid`].
pub fn name_of(config_dump: &[u8]) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    struct Config {
        name: String,
    }
    let Config { name } = parse(config_dump)?;
    Ok(name)
}

/// Checks that the documents of OCI tell of these files and of no other; each is checked with its
/// name in the archive.
///
/// # Errors
/// [`Refusal`], with the document that is wrong.
pub fn check(
    documents: &Documents,
    own: &Blob,
    files: &BTreeMap<String, Blob>,
) -> Result<(), (&'static str, Refusal)> {
    let wrong = |what: &str| Refusal::Invalid(what.to_owned());
    check_layout(&documents.layout).map_err(|refusal| (super::OCI_LAYOUT, refusal))?;
    let manifest = Blob::of(&documents.manifest);
    let index: Index = parse(&documents.index).map_err(|refusal| (super::INDEX, refusal))?;
    if !matches!(&index.manifests[..], [only] if only.is(&manifest)) {
        return Err((super::INDEX, wrong("it does not tell of the OCI manifest")));
    }
    let of_manifest = |refusal| ("the OCI manifest", refusal);
    let parsed: OciManifest = parse(&documents.manifest).map_err(of_manifest)?;
    if !parsed.config.is(own) {
        return Err(of_manifest(wrong("it has another configuration")));
    }
    let is_file = |layer: &Descriptor| {
        let title = layer.annotations.get(TITLE);
        let blob = title.and_then(|title| files.get(title));
        blob.is_some_and(|blob| layer.is(blob))
    };
    let titles = parsed.layers.iter().map(|layer| &layer.annotations);
    let titles: std::collections::BTreeSet<_> = titles.collect();
    let is_complete = parsed.layers.len() == files.len() && titles.len() == files.len();
    match is_complete && parsed.layers.iter().all(is_file) {
        true => Ok(()),
        false => Err(of_manifest(wrong("it has other files"))),
    }
}

/// The documents of OCI in an archive.
#[derive(Debug, Default)]
pub struct Documents {
    pub layout: Vec<u8>,
    pub index: Vec<u8>,
    pub manifest: Vec<u8>,
}

fn check_layout(bytes: &[u8]) -> Result<(), Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: String,
    }
    let Layout {
        image_layout_version: version,
    } = parse(bytes)?;
    match version == LAYOUT_VERSION {
        true => Ok(()),
        false => Err(Refusal::Invalid(format!("it has version {version:?}"))),
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::Invalid(error.to_string()))
}
