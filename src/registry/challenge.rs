//! What a registry asks for in `WWW-Authenticate`, read as leniently as Go's clients read it.
//!
//! RFC 9110, 11.6.1 has a grammar that registries do not keep: parameters come without quotes (`realm=/`), schemes in
//! any case, several challenges in one header or in several. The scheme's word decides; what cannot be read is
//! skipped, because a challenge after it may be usable.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// The token server's URL.
        realm: String,
        /// The registry's name for itself.
        service: Option<String>,
        /// What the token has to be good for, in the registry's words.
        scope: Option<String>,
    },
}

/// Bytes of a realm, service or scope.
const PARAMETER_LIMIT: usize = 2048;

/// The challenge to answer among the values of `WWW-Authenticate`: Bearer before Basic.
pub fn choose<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = false;
    for found in values.flat_map(parse) {
        let parameter = |name: &str| {
            let stated = found.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            stated.map(|(_, value)| value.clone()).filter(|value| value.len() <= PARAMETER_LIMIT)
        };
        if found.scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = parameter("realm").filter(|realm| !realm.is_empty()) {
                return Some(Challenge::Bearer {
                    realm,
                    service: parameter("service"),
                    scope: parameter("scope"),
                });
            }
        } else if found.scheme.eq_ignore_ascii_case("basic") {
            basic = true;
        }
    }
    basic.then_some(Challenge::Basic)
}

/// A scheme's word and what came with it.
struct Found<'a> {
    scheme: &'a str,
    parameters: Vec<(&'a str, String)>,
}

/// The challenges in one header.
fn parse(value: &str) -> Vec<Found<'_>> {
    let mut found: Vec<Found<'_>> = Vec::new();
    for item in items(value) {
        let word_end = item.find([' ', '\t', '=']).unwrap_or(item.len());
        let (word, rest) = (&item[..word_end], item[word_end..].trim_start());
        // `name=value` belongs to the challenge before it; anything else starts one.
        let parameters = match rest.strip_prefix('=') {
            Some(value) => Some((word, value)),
            None => {
                found.push(Found { scheme: word, parameters: Vec::new() });
                let equals = rest.find('=');
                equals.map(|equals| (rest[..equals].trim_end(), &rest[equals + 1..]))
            }
        };
        if let (Some((name, value)), Some(challenge)) = (parameters, found.last_mut()) {
            challenge.parameters.extend(unquoted(value.trim()).map(|value| (name, value)));
        }
    }
    found
}

/// The parts of a header between commas that stand in no quotes.
fn items(value: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = value.split(move |character: char| {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' => return !quoted,
            _ => {}
        }
        false
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// A value without its quotes and escapes; `None` when a quote is not closed.
fn unquoted(value: &str) -> Option<String> {
    let Some(inner) = value.strip_prefix('"') else { return Some(value.to_owned()) };
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => text.push(characters.next()?),
            character => text.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_challenges_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let (service, scope) = (service.map(str::to_owned), scope.map(str::to_owned));
            Some(Challenge::Bearer { realm: realm.into(), service, scope })
        };
        let table: [(&[&str], _); 18] = [
            (&[r#"Basic realm="x""#], Some(Challenge::Basic)),
            (&["Basic realm=/"], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (&["BASIC realm=Registry Realm"], Some(Challenge::Basic)),
            (&[r#"Bearer realm="https://a/t",service="s""#], bearer("https://a/t", Some("s"), None)),
            (&[r#"bearer realm="https://a/t""#], bearer("https://a/t", None, None)),
            (&["Bearer realm=https://a/t?x=y,service=s"], bearer("https://a/t?x=y", Some("s"), None)),
            (
                &[r#"Bearer realm = "https://a/t" , scope="repository:x:pull,push", service = s"#],
                bearer("https://a/t", Some("s"), Some("repository:x:pull,push")),
            ),
            (&[r#"Bearer service="a \"b\", c",realm="https://a/t""#], {
                bearer("https://a/t", Some("a \"b\", c"), None)
            }),
            (&[r#"Basic realm="x""#, r#"Bearer realm="https://a/t""#], bearer("https://a/t", None, None)),
            (&[r#"Basic realm="x", Bearer realm="https://a/t""#], bearer("https://a/t", None, None)),
            (&[r#"Negotiate, Basic realm="x""#], Some(Challenge::Basic)),
            (&[r#"NTLM TlRMTVNTUAAB==, Basic realm="x""#], Some(Challenge::Basic)),
            (
                &[r#"Digest realm="d", nonce="n", Bearer realm=https://a/t"#],
                bearer("https://a/t", None, None),
            ),
            (&["Negotiate"], None),
            (&["", ",,", "=", "\"", "realm=\"x\""], None),
            (&["Bearer realm=\"unclosed"], None),
            (&["Bearer error=\"invalid_token\"", "Basic realm=x"], Some(Challenge::Basic)),
        ];
        for (values, expected) in table {
            assert_eq!(choose(values.iter().copied()), expected, "{values:?}");
        }
    }
}
