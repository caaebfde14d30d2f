//! What refers to a manifest: signatures, attestations, bills of materials.
//!
//! Source: distribution-spec v1.1, "Listing Referrers", and the tag schema of "Backwards Compatibility" for registries that do not
//! have that API.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use bytes::Bytes;
use reqwest::header::{self, HeaderMap};
use reqwest::{Method, Url};

use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, SIZE_LIMIT, parse};
use crate::oci::media_type;
use crate::registry::client::Registry;
use crate::registry::error::Error;
use crate::registry::place::Place;
use crate::registry::retry::retry;
use crate::registry::source::Asker;
use crate::registry::transport::HttpRequest;

/// Pages of a list that are read.
const PAGES: usize = 16;
/// Referrers that are told of.
const LIMIT: usize = 1024;

impl Registry {
    /// The manifests that name the one at `digest` as their subject, at most 1,024; none when the registry knows of none. What they
    /// are is the registry's word: each is to be fetched, and checked, by its digest.
    ///
    /// # Errors
    /// When the registry refuses, cannot be reached, or sends no index.
    pub async fn referrers(&self, asker: &Asker, digest: &Digest) -> Result<Vec<Descriptor>, Error> {
        let place = self.server(asker).await?;
        let mut found = Vec::new();
        let mut next = Some(format!("referrers/{digest}"));
        for _ in 0..PAGES {
            let Some(path) = next.take() else { break };
            let page = match self.page(&place, asker, &path).await {
                Ok(page) => page,
                // It does not have the API. One that has it and knows of none answers with an empty list.
                Err(Error::NotFound { .. } | Error::Status { status: 400 | 405 | 501, .. })
                    if found.is_empty() =>
                {
                    return self.referrers_by_tag(asker, digest).await;
                }
                Err(error) => return Err(error),
            };
            found.extend(page.referrers);
            next = page.next.filter(|_| found.len() < LIMIT);
        }
        found.truncate(LIMIT);
        Ok(found)
    }

    /// The index at `sha256-<hex>`, which those who push keep up to date where a registry has no API for it.
    async fn referrers_by_tag(&self, asker: &Asker, digest: &Digest) -> Result<Vec<Descriptor>, Error> {
        let tag = digest.to_string().replacen(':', "-", 1);
        match self.manifest(asker, &tag).await {
            Ok(fetched) => {
                let mut found = listed(&fetched.bytes, &asker.source.repository.host)?;
                found.truncate(LIMIT);
                Ok(found)
            }
            Err(Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn page(&self, place: &Place, asker: &Asker, path: &str) -> Result<Page, Error> {
        let what = format!("referrers of {}", asker.source.repository.name);
        let transport = self.transport();
        let settings = transport.settings();
        retry(settings.attempts, settings.stall_timeout, |patience| {
            let accept = &[media_type::OCI_INDEX][..];
            let path = path.to_owned();
            let request =
                HttpRequest { method: Method::GET, path, accept, range: None, what: &what, patience };
            async move {
                let response = transport.send(place, &request).await?;
                let next = next_page(response.headers(), response.url(), place);
                let bytes = transport.read(place, Bytes::new(), response, SIZE_LIMIT).await?;
                Ok(Page { referrers: listed(&bytes, place.host())?, next })
            }
        })
        .await
    }
}

struct Page {
    referrers: Vec<Descriptor>,
    /// The next one, below `/v2/<repository>/`.
    next: Option<String>,
}

fn listed(bytes: &[u8], host: &str) -> Result<Vec<Descriptor>, Error> {
    match parse(bytes, Some(media_type::OCI_INDEX)) {
        Ok(Document::Index(index)) => Ok(index.manifests),
        _ => Err(Error::Protocol {
            host: host.to_owned(),
            what: "sent no list of referrers, but something else".into(),
        }),
    }
}

/// `Link: <…>; rel="next"`, RFC 8288, if it is in the same repository of the same registry.
fn next_page(headers: &HeaderMap, from: &Url, place: &Place) -> Option<String> {
    let link = headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    let next = link.flat_map(|value| value.split(',')).find(|link| link.contains("rel=\"next\""))?;
    let target = next.trim().strip_prefix('<')?.split_once('>')?.0;
    let url = from.join(target).ok().filter(|url| url.origin() == place.endpoint.base.origin())?;
    let root = format!("{}{}/", place.endpoint.base.path(), place.source.repository.name);
    let rest = url.path().strip_prefix(&root)?;
    Some(url.query().map_or_else(|| rest.to_owned(), |query| format!("{rest}?{query}")))
}
