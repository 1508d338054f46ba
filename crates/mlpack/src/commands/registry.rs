//! What the commands that know registries share: options, credentials, and where an artifact comes from.

use crate::cli::RegistryArgs;
use anyhow::bail;
use mlpack_fs::Sha256;
use mlpack_oci::{Layout, Reference, Tag};
use mlpack_registry::{Client, CredentialFiles, Document, Options, Repository, Wanted};
use std::env;
use std::path::PathBuf;

/// Largest blob that is read into memory.
const SMALL_LIMIT: u64 = 4 << 20;

/// A client for a repository of a host.
pub fn client(host: &str, repository: &str, args: &RegistryArgs) -> anyhow::Result<Client> {
    let mut options = Options { plain_http: args.plain_http, ca_files: args.ca.clone(), ..Options::default() };
    if let Some(retries) = args.retries {
        options.retries = retries;
    }
    if let Some(connections) = args.connections {
        options.connections = connections;
    }
    let credentials = CredentialFiles { files: credential_files(args) }.find(host, repository)?;
    Ok(Client::new(host, options, credentials)?)
}

/// The files that podman and docker keep credentials in, in the order in which they are asked.
fn credential_files(args: &RegistryArgs) -> Vec<PathBuf> {
    if let Some(file) = &args.authfile {
        return vec![file.clone()];
    }
    let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = path("HOME");
    let below = |dir: Option<PathBuf>, rest: &str| dir.map(|dir| dir.join(rest));
    let config = path("XDG_CONFIG_HOME").or_else(|| below(home.clone(), ".config"));
    let docker = path("DOCKER_CONFIG").or_else(|| below(home, ".docker"));
    [
        path("REGISTRY_AUTH_FILE"),
        below(path("XDG_RUNTIME_DIR"), "containers/auth.json"),
        below(config, "containers/auth.json"),
        below(docker, "config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Where an artifact is.
pub enum Place {
    /// A layout on disk.
    Layout { dir: PathBuf, tag: Tag },
    /// A repository of a registry.
    Registry { client: Box<Client>, repository: String, tag: Option<Tag>, digest: Option<Sha256> },
}

impl Place {
    /// Resolves a reference; nothing is opened or asked yet.
    pub fn new(reference: &str, args: &RegistryArgs) -> anyhow::Result<Place> {
        Ok(match reference.parse::<Reference>()? {
            Reference::Layout { dir, tag } => Place::Layout { dir, tag },
            Reference::Registry { host, repository, tag, digest } => {
                let client = Box::new(client(&host, &repository, args)?);
                Place::Registry { client, repository, tag, digest }
            }
        })
    }

    /// The same for something that is written: it needs a tag, and a digest makes no sense.
    pub fn target(reference: &str, args: &RegistryArgs) -> anyhow::Result<Place> {
        let place = Place::new(reference, args)?;
        if let Place::Registry { tag, digest, .. } = &place
            && (tag.is_none() || digest.is_some())
        {
            bail!(
                "cannot publish to `{reference}`\n  expected: HOST/REPOSITORY:TAG\n  found:    {}",
                if digest.is_some() { "a digest" } else { "no tag" }
            );
        }
        Ok(place)
    }

    /// The tag to write.
    pub fn tag(&self) -> &Tag {
        match self {
            Place::Layout { tag, .. } => tag,
            Place::Registry { tag, .. } => tag.as_ref().expect("a target has a tag"),
        }
    }

    /// As people write it, without a tag.
    pub fn name(&self) -> String {
        match self {
            Place::Layout { dir, .. } => format!("oci:{}", dir.display()),
            Place::Registry { client, repository, .. } => client.repository(repository).to_string(),
        }
    }
}

/// An opened place to read from.
pub enum Source<'a> {
    Layout(Layout),
    Registry(Repository<'a>),
}

impl<'a> Source<'a> {
    /// The place with its root document.
    pub fn open(place: &'a Place) -> anyhow::Result<(Source<'a>, Document)> {
        match place {
            Place::Layout { dir, tag } => {
                let layout = Layout::open(dir)?;
                let descriptor = layout.resolve(tag)?;
                let bytes = layout.read_bytes(&descriptor)?;
                let media_type = descriptor.media_type().to_string();
                Ok((Source::Layout(layout), Document { media_type, digest: Sha256::of(&bytes), bytes }))
            }
            Place::Registry { client, repository, tag, digest } => {
                let repository = client.repository(repository);
                let document = repository.document(tag.as_ref(), digest.as_ref())?;
                Ok((Source::Registry(repository), document))
            }
        }
    }

    /// A manifest that an index names.
    pub fn document(&self, digest: &Sha256) -> anyhow::Result<Document> {
        match self {
            Source::Registry(repository) => Ok(repository.document(None, Some(digest))?),
            Source::Layout(layout) => {
                let Some(descriptor) = layout.find_document(digest)? else {
                    bail!("image layout `{}` has no manifest sha256:{digest}", layout.dir().display());
                };
                let bytes = layout.read_bytes(&descriptor)?;
                let media_type = descriptor.media_type().to_string();
                Ok(Document { media_type, digest: *digest, bytes })
            }
        }
    }

    /// A small blob in memory.
    pub fn small_blob(&self, digest: &Sha256) -> anyhow::Result<Vec<u8>> {
        match self {
            Source::Registry(repository) => Ok(repository.small_blob(digest)?),
            Source::Layout(layout) => Ok(mlpack_fs::read_bounded(&layout.blob_path(digest), SMALL_LIMIT)?),
        }
    }

    /// Blobs into files, each under its name only when it is right; returns bytes fetched and bytes of an earlier run.
    pub fn fetch(&self, wanted: &[Wanted], progress: &(dyn Fn(i64) + Sync)) -> anyhow::Result<(u64, u64)> {
        match self {
            Source::Registry(repository) => {
                let pulled = mlpack_registry::pull(repository, wanted, progress)?;
                Ok((pulled.bytes_fetched, pulled.bytes_kept))
            }
            Source::Layout(layout) => {
                let mut bytes = 0;
                for file in wanted {
                    layout.copy_blob(&file.digest, file.byte_len, &file.path)?;
                    progress(file.byte_len as i64);
                    bytes += file.byte_len;
                }
                Ok((bytes, 0))
            }
        }
    }
}
