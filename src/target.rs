//! What the user dials.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::endpoint::{Address, Endpoint};
use crate::error::Error;

/// A parsed target: where the endpoints come from, and the name the calls go under.
///
/// | written | means |
/// |---|---|
/// | `static:10.0.0.1:50051,[::1]:50051,unix:/run/a.sock` | exactly these endpoints |
/// | `ipv4:10.0.0.1:50051,10.0.0.2:50051` | the same, IPv4 only |
/// | `ipv6:[::1]:50051` | the same, IPv6 only |
/// | `unix:/run/greeter.sock`, `unix:///run/greeter.sock` | one Unix domain socket |
/// | `10.0.0.1:50051`, `http://10.0.0.1:50051`, `dns:///10.0.0.1:50051` | one IP address |
/// | `https://10.0.0.1:50051`, `https://10.0.0.1` | the same over TLS (feature `tls`), on port 443 unless said otherwise |
/// | `anything://authority/path` with a resolver of your own | whatever it resolves to |
///
/// A missing port is an error but after `https`: gRPC has no port of its own for plaintext.
///
/// ```
/// use equipoise::Target;
///
/// let target: Target = "static:127.0.0.1:50051,127.0.0.1:50052".parse()?;
/// assert_eq!(target.scheme(), "static");
/// assert!("sttic:127.0.0.1:50051".parse::<Target>().is_err());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    text: String,
    scheme: String,
    rest: String,
    fixed: Option<Vec<Endpoint>>,
}

/// The schemes that need no resolver of the user's own.
pub(crate) const KNOWN_SCHEMES: &str = "static, ipv4, ipv6, unix, dns (IP literals), http, https";

impl Target {
    /// A target for a resolver of the user's own: only the form is checked.
    ///
    /// # Errors
    ///
    /// When `text` is empty or holds a control character.
    pub(crate) fn for_resolver(text: &str) -> Result<Self, Error> {
        check_text(text)?;
        let (scheme, rest) = split(text);
        Ok(Self {
            text: text.to_owned(),
            scheme,
            rest: rest.to_owned(),
            fixed: None,
        })
    }

    /// A list given by hand rather than as text.
    pub(crate) fn from_endpoints(endpoints: Vec<Endpoint>) -> Self {
        let list: Vec<String> = endpoints.iter().map(|e| e.address().to_string()).collect();
        let rest = list.join(",");
        Self {
            text: format!("static:{rest}"),
            scheme: "static".to_owned(),
            rest,
            fixed: Some(endpoints),
        }
    }

    /// The part before the first colon, in lower case: which resolver is asked.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The part after the scheme, as written.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// Whether the scheme has a meaning of its own, so that no resolver could give it another by mistake.
    pub(crate) fn is_built_in(&self) -> bool {
        matches!(
            self.scheme.as_str(),
            "static" | "ipv4" | "ipv6" | "unix" | "http" | "https"
        )
    }

    /// Whether connections must be secured.
    pub(crate) fn wants_tls(&self) -> bool {
        self.scheme == "https"
    }

    /// The host as written, without its port, where the target names one: what a server's certificate must
    /// be for, unless an authority is set.
    #[cfg(feature = "tls")]
    pub(crate) fn host(&self) -> Option<&str> {
        let named = match self.scheme.as_str() {
            "dns" => dns_host(&self.text, &self.rest),
            "http" | "https" => http_host(&self.text, &self.scheme, &self.rest),
            _ => return None,
        };
        let host = named.ok()?;
        let host = match host.rsplit_once(':') {
            Some((host, port)) if is_port(port) => host,
            _ => host,
        };
        (!host.is_empty()).then_some(host)
    }

    /// The endpoints, where the target itself lists them.
    pub(crate) fn fixed(&self) -> Option<&[Endpoint]> {
        self.fixed.as_deref()
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        check_text(text)?;
        let (scheme, rest) = split(text);
        let fixed = match scheme.as_str() {
            "static" => list(text, rest, |_| true, "an address")?,
            "ipv4" => list(text, rest, is_v4, "an IPv4 address")?,
            "ipv6" => list(text, rest, is_v6, "an IPv6 address")?,
            "unix" => vec![unix(text, rest)?],
            "dns" => vec![literal(text, dns_host(text, rest)?)?],
            "http" => vec![literal(text, http_host(text, "http", rest)?)?],
            "https" => {
                let host = http_host(text, "https", rest)?;
                vec![literal(text, &with_port(host, HTTPS_PORT))?]
            }
            unknown => {
                return Err(Error::target(
                    text,
                    format_args!(
                        "unknown scheme {unknown:?}; known are {KNOWN_SCHEMES}, or any with a resolver of your own"
                    ),
                ));
            }
        };
        Ok(Self {
            text: text.to_owned(),
            scheme,
            rest: rest.to_owned(),
            fixed: Some(fixed),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn check_text(text: &str) -> Result<(), Error> {
    if text.trim().is_empty() {
        return Err(Error::target(text, "a target must not be empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::target(
            text,
            "a target must not hold control characters",
        ));
    }
    Ok(())
}

fn split(text: &str) -> (String, &str) {
    match text.split_once(':') {
        // `127.0.0.1:80` has no scheme, and neither has `greeter:80`: a port follows the colon.
        Some((head, tail)) if is_scheme(head) && !is_port(tail) => {
            (head.to_ascii_lowercase(), tail)
        }
        _ => ("dns".to_owned(), text),
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_v4(address: &Address) -> bool {
    matches!(address, Address::Tcp(a) if a.is_ipv4())
}

fn is_v6(address: &Address) -> bool {
    matches!(address, Address::Tcp(a) if a.is_ipv6())
}

fn list(
    text: &str,
    rest: &str,
    fits: fn(&Address) -> bool,
    what: &str,
) -> Result<Vec<Endpoint>, Error> {
    let rest = rest.strip_prefix("///").unwrap_or(rest);
    rest.split(',')
        .map(|item| {
            let item = item.trim();
            if item.is_empty() {
                return Err(Error::target(text, "the list has an empty entry"));
            }
            let address: Address = item.parse().map_err(|e| Error::target(text, e))?;
            if !fits(&address) {
                return Err(Error::target(text, format_args!("{item:?} is not {what}")));
            }
            Ok(Endpoint::new(address))
        })
        .collect()
}

fn unix(text: &str, rest: &str) -> Result<Endpoint, Error> {
    // `unix:///abs` is the URI form of `unix:/abs`; other `//host` forms mean nothing.
    let path = match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => {
            return Err(Error::target(
                text,
                "write unix:path or unix:///absolute/path; a unix target has no host",
            ));
        }
        None => rest,
    };
    if path.is_empty() {
        return Err(Error::target(text, "a unix target needs a path"));
    }
    Ok(Endpoint::new(Address::Unix(path.into())))
}

fn dns_host<'a>(text: &str, rest: &'a str) -> Result<&'a str, Error> {
    match rest.strip_prefix("//") {
        None => Ok(rest),
        Some(rest) => match rest.split_once('/') {
            Some(("", host)) => Ok(host),
            Some((server, _)) => Err(Error::target(
                text,
                format_args!(
                    "a name server in the target ({server:?}) is not supported; write dns:///host:port"
                ),
            )),
            None => Err(Error::target(
                text,
                "write dns:///host:port, with three slashes",
            )),
        },
    }
}

/// Where `https` is served unless the target says otherwise.
const HTTPS_PORT: u16 = 443;

fn with_port(host: &str, port: u16) -> Cow<'_, str> {
    match host.rsplit_once(':') {
        Some((_, own)) if is_port(own) => host.into(),
        _ => format!("{host}:{port}").into(),
    }
}

fn http_host<'a>(text: &str, scheme: &str, rest: &'a str) -> Result<&'a str, Error> {
    let host = rest
        .strip_prefix("//")
        .ok_or_else(|| Error::target(text, format_args!("write {scheme}://host:port")))?;
    let host = host.strip_suffix('/').unwrap_or(host);
    if host.contains(['/', '?', '#', '@']) {
        return Err(Error::target(
            text,
            format_args!("only {scheme}://host:port, without path, query or user"),
        ));
    }
    Ok(host)
}

fn literal(text: &str, host: &str) -> Result<Endpoint, Error> {
    match host.parse::<SocketAddr>() {
        Ok(_) => {
            let address: Address = host.parse().map_err(|e| Error::target(text, e))?;
            Ok(Endpoint::new(address))
        }
        Err(_) => Err(Error::target(
            text,
            format_args!(
                "{host:?} is not ip:port, and this version looks up no names; known schemes are {KNOWN_SCHEMES}, or any with a resolver of your own"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<String> {
        let target: Target = text.parse().unwrap_or_else(|e| panic!("{e}"));
        let fixed = target.fixed().expect("a fixed list");
        fixed.iter().map(|e| e.address().to_string()).collect()
    }

    #[test]
    fn every_form_is_read() {
        for (text, expected) in [
            ("static:127.0.0.1:1,127.0.0.1:2", "127.0.0.1:1 127.0.0.1:2"),
            ("static: 127.0.0.1:1 , unix:/a ", "127.0.0.1:1 unix:/a"),
            ("static:///127.0.0.1:1", "127.0.0.1:1"),
            ("STATIC:[::1]:1", "[::1]:1"),
            ("ipv4:10.0.0.1:1,10.0.0.2:1", "10.0.0.1:1 10.0.0.2:1"),
            ("ipv6:[::1]:1,[2001:db8::1]:2", "[::1]:1 [2001:db8::1]:2"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("unix:///run/a.sock", "unix:/run/a.sock"),
            ("unix:relative.sock", "unix:relative.sock"),
            ("127.0.0.1:50051", "127.0.0.1:50051"),
            ("[::1]:50051", "[::1]:50051"),
            ("dns:///127.0.0.1:50051", "127.0.0.1:50051"),
            ("dns:127.0.0.1:50051", "127.0.0.1:50051"),
            ("http://127.0.0.1:50051/", "127.0.0.1:50051"),
            ("https://127.0.0.1:50051/", "127.0.0.1:50051"),
            ("https://127.0.0.1", "127.0.0.1:443"),
            ("https://[::1]", "[::1]:443"),
        ] {
            assert_eq!(addresses(text).join(" "), expected, "{text}");
        }
    }

    #[test]
    fn bad_targets_name_value_and_rule() {
        for (text, rule) in [
            ("", "must not be empty"),
            ("   ", "must not be empty"),
            ("static:127.0.0.1:1\n", "control characters"),
            ("static:", "empty entry"),
            ("static:127.0.0.1:1,", "empty entry"),
            ("static:127.0.0.1:1,,127.0.0.1:2", "empty entry"),
            ("static:127.0.0.1", "expected ip:port"),
            ("static:127.0.0.1:0", "port 0"),
            ("static:127.0.0.1:65536", "expected ip:port"),
            ("static:0.0.0.0:80", "unspecified"),
            ("static:greeter:80", "expected ip:port"),
            ("ipv4:[::1]:1", "not an IPv4 address"),
            ("ipv6:127.0.0.1:1", "not an IPv6 address"),
            ("ipv4:unix:/a", "not an IPv4 address"),
            ("unix:", "needs a path"),
            ("unix://host/a", "no host"),
            (
                "sttic:127.0.0.1:1",
                "unknown scheme \"sttic\"; known are static",
            ),
            ("consul:///greeter", "unknown scheme \"consul\""),
            ("dns://8.8.8.8/127.0.0.1:1", "name server"),
            ("dns://127.0.0.1:1", "three slashes"),
            ("greeter:50051", "looks up no names"),
            ("127.0.0.1", "looks up no names"),
            ("http:127.0.0.1:1", "write http://host:port"),
            ("http://127.0.0.1:1/path", "without path"),
            ("http://user@127.0.0.1:1", "without path"),
            ("https:127.0.0.1:1", "write https://host:port"),
            ("https://127.0.0.1:1/path", "only https://host:port"),
            ("https://greeter", "looks up no names"),
            ("https://:443", "looks up no names"),
        ] {
            let error = text.parse::<Target>().expect_err(text).to_string();
            assert!(error.contains(rule), "{text}: {error}");
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn the_host_to_verify_is_the_one_written() {
        for (text, tls, host) in [
            ("https://10.0.0.1:50051", true, Some("10.0.0.1")),
            ("https://[::1]/", true, Some("[::1]")),
            ("HTTPS://10.0.0.1", true, Some("10.0.0.1")),
            ("http://10.0.0.1:80", false, Some("10.0.0.1")),
            ("10.0.0.1:50051", false, Some("10.0.0.1")),
            ("dns:///[::1]:50051", false, Some("[::1]")),
            ("static:10.0.0.1:1", false, None),
            ("unix:/run/a.sock", false, None),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.wants_tls(), target.host()), (tls, host), "{text}");
        }
        // With a resolver of one's own the name need not be an address, and other schemes name nobody.
        for (text, host) in [
            ("greeter.test:443", Some("greeter.test")),
            ("dns:///greeter.test", Some("greeter.test")),
            ("shop://cluster/cart", None),
        ] {
            assert_eq!(Target::for_resolver(text).unwrap().host(), host, "{text}");
        }
    }

    #[test]
    fn a_resolver_of_ones_own_takes_any_scheme() {
        let target = Target::for_resolver("shop://cluster/cart").unwrap();
        assert_eq!((target.scheme(), target.rest()), ("shop", "//cluster/cart"));
        assert!(target.fixed().is_none());
        assert!(Target::for_resolver("").is_err());
    }
}
