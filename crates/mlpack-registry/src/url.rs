//! Addresses: what may follow what, and how one is shown without its secrets.

use std::fmt;
use ureq::http::Uri;

/// An absolute `http` or `https` address.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host and port as written, without user information.
    pub authority: String,
    /// The path with its query; starts with a slash.
    pub path_and_query: String,
}

impl Url {
    /// Parses an absolute address. User information is refused: credentials have another way.
    pub fn parse(text: &str) -> Option<Url> {
        let uri: Uri = text.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            "http" => "http",
            "https" => "https",
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        if authority.contains('@') {
            return None;
        }
        let path_and_query = match uri.path_and_query() {
            Some(path) if path.as_str().starts_with('/') => path.as_str().to_owned(),
            Some(path) => format!("/{}", path.as_str()),
            None => "/".to_owned(),
        };
        Some(Url { scheme, authority: authority.to_owned(), path_and_query })
    }

    /// What a `Location` header means at this address (RFC 3986, the forms that registries use).
    pub fn join(&self, location: &str) -> Option<Url> {
        if location.starts_with("//") {
            return Url::parse(&format!("{}:{location}", self.scheme));
        }
        if location.contains("://") && !location.starts_with(['/', '?']) {
            return Url::parse(location);
        }
        let path = self.path_and_query.split('?').next().unwrap_or("/");
        let joined = match location {
            "" => return None,
            l if l.starts_with('/') => l.to_owned(),
            l if l.starts_with('?') => format!("{path}{l}"),
            l => format!("{}/{l}", path.rsplit_once('/').map_or("", |(parent, _)| parent)),
        };
        Url::parse(&format!("{}://{}{joined}", self.scheme, self.authority))
    }

    /// The address that an answer sends on to. https is not left: a registry behind a proxy that names itself with http is meant
    /// as it was reached, and any other server must speak https.
    pub fn follow(&self, location: &str) -> Option<Url> {
        let next = self.join(location)?;
        match (self.scheme, next.scheme) {
            ("https", "http") if self.host().eq_ignore_ascii_case(next.host()) => {
                Some(Url { scheme: "https", authority: self.authority.clone(), ..next })
            }
            ("https", "http") => None,
            _ => Some(next),
        }
    }

    /// The address with another query parameter.
    pub fn with_parameter(&self, name: &str, value: &str) -> Url {
        let separator = match self.path_and_query.split_once('?') {
            None => "?",
            Some((_, "")) => "",
            Some((_, query)) if query.ends_with('&') => "",
            Some(_) => "&",
        };
        let path_and_query = format!("{}{separator}{name}={}", self.path_and_query, encode(value));
        Url { path_and_query, ..self.clone() }
    }

    /// Whether it is the same server: scheme, host and port.
    pub fn same_origin(&self, other: &Url) -> bool {
        let port = |url: &Url| match url.authority.rsplit_once(':') {
            Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) => port.to_owned(),
            _ => if url.scheme == "https" { "443" } else { "80" }.to_owned(),
        };
        self.scheme == other.scheme && self.host().eq_ignore_ascii_case(other.host()) && port(self) == port(other)
    }

    /// The host without its port.
    pub fn host(&self) -> &str {
        match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.authority,
        }
    }

    /// The whole address, secrets included.
    pub fn full(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority, self.path_and_query)
    }
}

/// Without the query: upload sessions and signed downloads carry their secret there.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path_and_query.split('?').next().unwrap_or("/");
        write!(f, "{}://{}{}", self.scheme, self.authority, mlpack_tensor::Escaped(path))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

/// Percent-encodes a query value; colons and slashes stay, as Go's clients write digests and names.
pub(crate) fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b',' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn locations_join_as_registries_write_them() {
        let at = url("https://r.example:5000/v2/a/blobs/uploads/x?_state=1");
        for (location, joined) in [
            ("/v2/a/y?_state=2", "https://r.example:5000/v2/a/y?_state=2"),
            ("https://s.example/p?q", "https://s.example/p?q"),
            ("//s.example/p", "https://s.example/p"),
            ("y", "https://r.example:5000/v2/a/blobs/uploads/y"),
            ("?_state=2", "https://r.example:5000/v2/a/blobs/uploads/x?_state=2"),
            ("/p?u=http://x/y", "https://r.example:5000/p?u=http://x/y"),
        ] {
            assert_eq!(at.join(location).unwrap().full(), joined, "{location}");
        }
        for bad in ["", "ftp://x/y", "https://user:password@s.example/", "javascript://x"] {
            assert_eq!(at.join(bad), None, "{bad}");
        }
    }

    #[test]
    fn https_is_not_left() {
        let at = url("https://r.example:5000/v2/");
        assert_eq!(at.follow("http://r.example/x").unwrap().full(), "https://r.example:5000/x");
        assert_eq!(at.follow("http://s.example/x"), None);
        assert_eq!(at.follow("https://s.example/x").unwrap().full(), "https://s.example/x");
        assert_eq!(url("http://a/").follow("http://s.example/x").unwrap().full(), "http://s.example/x");
    }

    #[test]
    fn a_parameter_is_added_to_what_is_there() {
        for (before, after) in [("/u", "/u?digest=sha256:a%2B"), ("/u?a=1", "/u?a=1&digest=sha256:a%2B")] {
            let found = url(&format!("http://h{before}")).with_parameter("digest", "sha256:a+");
            assert_eq!(found.path_and_query, after);
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port_and_nothing_secret_is_shown() {
        assert!(url("https://R.example/a").same_origin(&url("https://r.example:443/b")));
        for other in ["http://r.example/", "https://r.example:444/", "https://x.example/"] {
            assert!(!url("https://r.example/").same_origin(&url(other)), "{other}");
        }
        assert_eq!(format!("{:?}", url("https://h/p?X-Signature=secret")), "Url(https://h/p)");
    }
}
