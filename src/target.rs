//! What the user dials.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::endpoint::{Address, Endpoint};
use crate::error::Error;

/// A parsed target: where the endpoints come from, and the name the calls go under.
///
/// | written | means |
/// |---|---|
/// | `dns:///greeter.prod.svc:50051`, `dns:greeter:50051`, `greeter:50051` | every address the system's resolver knows for the name ([`Dns`](crate::resolver::Dns)) |
/// | `http://greeter:50051` | the same |
/// | `https://greeter:50051`, `https://greeter` | the same over TLS, on port 443 where none is written |
/// | `static:10.0.0.1:50051,[::1]:50051,unix:/run/a.sock` | exactly these endpoints |
/// | `ipv4:10.0.0.1:50051,10.0.0.2:50051` | the same, IPv4 only |
/// | `ipv6:[::1]:50051` | the same, IPv6 only |
/// | `unix:/run/greeter.sock`, `unix:///run/greeter.sock` | one Unix domain socket |
/// | `10.0.0.1:50051`, `http://10.0.0.1:50051`, `dns:///10.0.0.1:50051` | one IP address |
/// | `anything://authority/path` with a resolver of your own | whatever it resolves to |
///
/// A missing port is an error, but for `https`: gRPC has no port of its own for plaintext.
///
/// A name is what DNS takes for a host: labels of ASCII letters, digits, `-` and `_`, up to 63 in a label and
/// 253 in all, a trailing dot where no search domain is to be tried. Other scripts are written in punycode
/// (`xn--…`). Whatever ends in a number and is no IPv4 address is an error, since the system would read
/// `10.1` as `10.0.0.1`. IPv6 addresses stand in brackets; a zone is the number of the interface
/// (`[fe80::1%2]:50051`).
///
/// Calls on a name go under what is written (`:authority` is `greeter.prod.svc:50051`), whichever address
/// takes them; on addresses, under the address.
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
    place: Option<Place>,
    tls: bool,
}

/// The one host that a target names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// A name or an IP address, without brackets.
    host: String,
    port: u16,
    /// Host and port as written.
    written: String,
}

/// The schemes that need no resolver of the user's own.
const KNOWN_SCHEMES: &str = "dns, http, https, static, ipv4, ipv6, unix";

/// The port of `https` where none is written (RFC 9110 §4.2.2).
const HTTPS: u16 = 443;

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
            place: None,
            tls: false,
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
            place: None,
            tls: false,
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

    /// The endpoints, where the target itself lists them.
    pub(crate) fn fixed(&self) -> Option<&[Endpoint]> {
        self.fixed.as_deref()
    }

    /// Host and port, where the target is a name that must be looked up.
    pub(crate) fn name(&self) -> Option<(&str, u16)> {
        let place = self.place.as_ref().filter(|_| self.fixed.is_none())?;
        Some((&place.host, place.port))
    }

    /// The `:authority` of calls on a name: host and port as written.
    pub(crate) fn authority(&self) -> Option<&str> {
        let place = self.place.as_ref().filter(|_| self.fixed.is_none())?;
        Some(&place.written)
    }

    /// The host, name or IP address, without brackets and without the dot that ends a full name: what a
    /// server has to prove that it is. None for lists, sockets and targets of the user's own resolver.
    pub(crate) fn host(&self) -> Option<&str> {
        let host = &self.place.as_ref()?.host;
        Some(host.strip_suffix('.').unwrap_or(host))
    }

    /// Whether the target itself asks for TLS: `https`.
    pub(crate) fn wants_tls(&self) -> bool {
        self.tls
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        check_text(text)?;
        let (scheme, rest) = split(text);
        let tls = scheme == "https";
        let listed = |fixed| (Some(fixed), None);
        let (fixed, place) = match scheme.as_str() {
            "static" => listed(list(text, rest, |_| true, "an address")?),
            "ipv4" => listed(list(text, rest, is_v4, "an IPv4 address")?),
            "ipv6" => listed(list(text, rest, is_v6, "an IPv6 address")?),
            "unix" => listed(vec![unix(text, rest)?]),
            "dns" => place(text, dns_host(text, rest)?, None)?,
            "http" => place(text, http_host(text, rest, "http://host:port")?, None)?,
            "https" => {
                let host = http_host(text, rest, "https://host or https://host:port")?;
                place(text, host, Some(HTTPS))?
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
            fixed,
            place,
            tls,
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

fn http_host<'a>(text: &str, rest: &'a str, form: &str) -> Result<&'a str, Error> {
    let host = rest
        .strip_prefix("//")
        .ok_or_else(|| Error::target(text, format_args!("write {form}")))?;
    Ok(host.strip_suffix('/').unwrap_or(host))
}

/// What one `host:port` leads to: the endpoint of an IP address, or nothing yet for a name.
fn place(
    text: &str,
    written: &str,
    default_port: Option<u16>,
) -> Result<(Option<Vec<Endpoint>>, Option<Place>), Error> {
    let wrong = |rule: &str| Error::target(text, rule);
    if written.contains(char::is_whitespace) {
        return Err(wrong("a host must not hold white space"));
    }
    if written.contains(['/', '?', '#', '@']) {
        return Err(wrong("only host and port, without path, query or user"));
    }
    let (host, port, bracketed) = match written.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, None, true),
            Some((host, port)) if port.starts_with(':') => (host, Some(&port[1..]), true),
            _ => return Err(wrong("expected [ipv6]:port")),
        },
        None => match written.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err(wrong(
                    "more than one colon; an IPv6 address stands in brackets, as in [::1]:50051",
                ));
            }
            Some((host, port)) => (host, Some(port), false),
            None => (written, None, false),
        },
    };
    if host.is_empty() {
        return Err(wrong("the host is missing"));
    }
    let port = match (port, default_port) {
        (None, Some(port)) => port,
        (None | Some(""), _) => {
            return Err(wrong(
                "the port is missing; gRPC has none of its own for plaintext",
            ));
        }
        (Some(port), _) => {
            let number = port.parse().ok().filter(|_| is_port(port));
            number.filter(|&number: &u16| number > 0).ok_or_else(|| {
                Error::target(text, format_args!("port {port:?} is not in 1..=65535"))
            })?
        }
    };
    let literal = match bracketed {
        // With its zone, if any, which only the number of an interface can be.
        true => Some(format!("[{host}]:{port}")),
        false => host.parse().ok().map(|ip: Ipv4Addr| format!("{ip}:{port}")),
    };
    let fixed = match literal {
        None => {
            check_name(host).map_err(|rule| {
                Error::target(text, format_args!("{host:?} is no host name: {rule}"))
            })?;
            None
        }
        Some(literal) => {
            let ip = host.split('%').next().unwrap_or(host);
            if bracketed && ip.parse::<Ipv6Addr>().is_err() {
                return Err(wrong("brackets are for IPv6 addresses"));
            }
            let address: Address = literal.parse().map_err(|e| Error::target(text, e))?;
            Some(vec![Endpoint::new(address)])
        }
    };
    let place = Place {
        host: host.to_owned(),
        port,
        written: written.to_owned(),
    };
    Ok((fixed, Some(place)))
}

/// RFC 1123's rules for a host name, and underscores, which container networks use.
fn check_name(host: &str) -> Result<(), String> {
    let name = host.strip_suffix('.').unwrap_or(host);
    if !name.is_ascii() {
        return Err("it is not ASCII; write it in punycode (xn--…)".into());
    }
    if name.len() > 253 {
        return Err(format!("it has {} characters, 253 at most", name.len()));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err("it has an empty label".into());
        }
        if label.len() > 63 {
            return Err(format!(
                "its label {label:?} has {} characters, 63 at most",
                label.len()
            ));
        }
        let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if let Some(odd) = label.chars().find(|c| !fits(c)) {
            return Err(format!("it holds {odd:?}"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(format!("its label {label:?} begins or ends with a hyphen"));
        }
    }
    // Old readers of addresses take these for IPv4, with parts left out or in hexadecimal.
    let last = name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase();
    let hexadecimal = |digits: &str| digits.bytes().all(|b| b.is_ascii_hexdigit());
    if is_port(&last) || last.strip_prefix("0x").is_some_and(hexadecimal) {
        return Err("it ends in a number and is no IPv4 address".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target in words: where it leads, or the rule it breaks.
    fn read(text: &str) -> String {
        let target: Target = match text.parse() {
            Ok(target) => target,
            Err(error) => {
                let (error, named) = (error.to_string(), format!("target {text:?}: "));
                return match error.strip_prefix(&named) {
                    Some(rule) => format!("error: {rule}"),
                    None => panic!("{error} does not name {text:?}"),
                };
            }
        };
        let tls = if target.wants_tls() { "tls " } else { "" };
        match (target.fixed(), target.name()) {
            (Some(fixed), None) => {
                let list: Vec<_> = fixed.iter().map(|e| e.address().to_string()).collect();
                format!("{tls}{}", list.join(" "))
            }
            (None, Some((host, port))) => {
                let authority = target.authority().expect("names have one");
                format!("{tls}name {host} {port} as {authority}")
            }
            both => panic!("{text}: {both:?}"),
        }
    }

    /// F23: what becomes of each, to the letter.
    #[test]
    fn f23_targets_and_what_becomes_of_them() {
        const LONG: &str = "a123456789b123456789c123456789d123456789e123456789f123456789g123";
        let long = format!("{LONG}:80");
        let too_long = format!(
            "error: \"{LONG}\" is no host name: its label \"{LONG}\" has 64 characters, 63 at most"
        );
        let deep = format!("{}a.b:80", "label.".repeat(42));
        let too_deep = format!(
            "error: \"{}a.b\" is no host name: it has 255 characters, 253 at most",
            "label.".repeat(42)
        );
        let no_port = "error: the port is missing; gRPC has none of its own for plaintext";
        let only_host = "error: only host and port, without path, query or user";
        let known = "known are dns, http, https, static, ipv4, ipv6, unix, or any with a resolver of your own";
        let unknown = |scheme: &str| format!("error: unknown scheme {scheme:?}; {known}");
        let address = |at: &str, rule: &str| format!("error: address {at:?}: {rule}");
        let form = "expected ip:port, [ipv6]:port or unix:path";
        let zone = "a zone is the number of an interface, as in [fe80::1%2]:50051";
        let table: &[(&str, &str)] = &[
            // Lists.
            ("static:127.0.0.1:1,127.0.0.1:2", "127.0.0.1:1 127.0.0.1:2"),
            // The balancer takes the first and counts the other.
            ("static:127.0.0.1:1,127.0.0.1:1", "127.0.0.1:1 127.0.0.1:1"),
            ("static: 127.0.0.1:1 , unix:/a ", "127.0.0.1:1 unix:/a"),
            ("static:///127.0.0.1:1", "127.0.0.1:1"),
            ("STATIC:[::1]:1", "[::1]:1"),
            ("static:[2001:DB8::1]:1", "[2001:db8::1]:1"),
            ("static:[fe80::1%2]:1", "[fe80::1%2]:1"),
            ("ipv4:10.0.0.1:1,10.0.0.2:1", "10.0.0.1:1 10.0.0.2:1"),
            ("ipv6:[::1]:1,[2001:db8::1]:2", "[::1]:1 [2001:db8::1]:2"),
            ("static:", "error: the list has an empty entry"),
            ("static:127.0.0.1:1,", "error: the list has an empty entry"),
            (
                "static:127.0.0.1:1,,127.0.0.1:2",
                "error: the list has an empty entry",
            ),
            ("static:127.0.0.1", &address("127.0.0.1", form)),
            (
                "static:127.0.0.1:0",
                &address("127.0.0.1:0", "port 0 cannot be dialled"),
            ),
            ("static:127.0.0.1:65536", &address("127.0.0.1:65536", form)),
            (
                "static:0.0.0.0:80",
                &address("0.0.0.0:80", "the unspecified address cannot be dialled"),
            ),
            ("static:localhost:80", &address("localhost:80", form)),
            (
                "static:[fe80::1%eth0]:1",
                &address("[fe80::1%eth0]:1", zone),
            ),
            ("ipv4:[::1]:1", "error: \"[::1]:1\" is not an IPv4 address"),
            (
                "ipv6:127.0.0.1:1",
                "error: \"127.0.0.1:1\" is not an IPv6 address",
            ),
            ("ipv4:unix:/a", "error: \"unix:/a\" is not an IPv4 address"),
            // Unix sockets.
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("unix:///run/a.sock", "unix:/run/a.sock"),
            ("unix:relative.sock", "unix:relative.sock"),
            ("UNIX:/run/A.sock", "unix:/run/A.sock"),
            ("unix:", "error: a unix target needs a path"),
            (
                "unix://host/a",
                "error: write unix:path or unix:///absolute/path; a unix target has no host",
            ),
            // IP addresses.
            ("127.0.0.1:50051", "127.0.0.1:50051"),
            ("[::1]:50051", "[::1]:50051"),
            ("[FE80::1%2]:50051", "[fe80::1%2]:50051"),
            ("dns:///127.0.0.1:50051", "127.0.0.1:50051"),
            ("dns:127.0.0.1:50051", "127.0.0.1:50051"),
            ("dns:///[::1]:50051", "[::1]:50051"),
            ("http://127.0.0.1:50051/", "127.0.0.1:50051"),
            ("https://127.0.0.1", "tls 127.0.0.1:443"),
            ("https://[::1]:8443", "tls [::1]:8443"),
            ("127.0.0.1", no_port),
            ("[::1]", no_port),
            (
                "::1",
                "error: more than one colon; an IPv6 address stands in brackets, as in [::1]:50051",
            ),
            ("[::1]50051", "error: expected [ipv6]:port"),
            ("[::1", "error: expected [ipv6]:port"),
            ("[greeter]:80", "error: brackets are for IPv6 addresses"),
            ("[127.0.0.1]:80", "error: brackets are for IPv6 addresses"),
            ("[fe80::1%eth0]:80", &address("[fe80::1%eth0]:80", zone)),
            (
                "0.0.0.0:80",
                &address("0.0.0.0:80", "the unspecified address cannot be dialled"),
            ),
            ("127.0.0.1:0", "error: port \"0\" is not in 1..=65535"),
            // Names.
            ("greeter:50051", "name greeter 50051 as greeter:50051"),
            ("dns:greeter:50051", "name greeter 50051 as greeter:50051"),
            (
                "dns:///greeter.prod.svc:50051",
                "name greeter.prod.svc 50051 as greeter.prod.svc:50051",
            ),
            (
                "DNS:///Greeter.Prod:50051",
                "name Greeter.Prod 50051 as Greeter.Prod:50051",
            ),
            (
                "greeter.prod.svc.:50051",
                "name greeter.prod.svc. 50051 as greeter.prod.svc.:50051",
            ),
            ("localhost:80", "name localhost 80 as localhost:80"),
            ("my_service:80", "name my_service 80 as my_service:80"),
            (
                "xn--bcher-kva.example:80",
                "name xn--bcher-kva.example 80 as xn--bcher-kva.example:80",
            ),
            ("1password:80", "name 1password 80 as 1password:80"),
            ("http://greeter:80", "name greeter 80 as greeter:80"),
            ("https://greeter", "tls name greeter 443 as greeter"),
            (
                "https://greeter:8443/",
                "tls name greeter 8443 as greeter:8443",
            ),
            ("greeter", no_port),
            ("dns:///greeter", no_port),
            ("dns:///greeter:", no_port),
            ("http://greeter", no_port),
            ("greeter:0", "error: port \"0\" is not in 1..=65535"),
            ("greeter:65536", "error: port \"65536\" is not in 1..=65535"),
            ("dns:greeter:+80", "error: port \"+80\" is not in 1..=65535"),
            (":80", "error: the host is missing"),
            ("dns:///", "error: the host is missing"),
            ("dns:///:80", "error: the host is missing"),
            ("https://:80", "error: the host is missing"),
            (
                ".:80",
                "error: \".\" is no host name: it has an empty label",
            ),
            (
                "a..b:80",
                "error: \"a..b\" is no host name: it has an empty label",
            ),
            (
                "-a:80",
                "error: \"-a\" is no host name: its label \"-a\" begins or ends with a hyphen",
            ),
            (
                "b.a-:80",
                "error: \"b.a-\" is no host name: its label \"a-\" begins or ends with a hyphen",
            ),
            ("a*b:80", "error: \"a*b\" is no host name: it holds '*'"),
            (
                "dns:a:1,b:2",
                "error: more than one colon; an IPv6 address stands in brackets, as in [::1]:50051",
            ),
            ("dns:a,b:2", "error: \"a,b\" is no host name: it holds ','"),
            (
                "bücher:80",
                "error: \"bücher\" is no host name: it is not ASCII; write it in punycode (xn--…)",
            ),
            (
                "10.1:80",
                "error: \"10.1\" is no host name: it ends in a number and is no IPv4 address",
            ),
            (
                "10.0.0.256:80",
                "error: \"10.0.0.256\" is no host name: it ends in a number and is no IPv4 address",
            ),
            (
                "0x7f000001:80",
                "error: \"0x7f000001\" is no host name: it ends in a number and is no IPv4 address",
            ),
            (&long, &too_long),
            (&deep, &too_deep),
            ("gree ter:80", "error: a host must not hold white space"),
            (" greeter:80", "error: a host must not hold white space"),
            ("dns:///user@greeter:80", only_host),
            ("dns:///greeter:80/path", only_host),
            ("dns:/greeter:80", only_host),
            ("http://greeter:80/path", only_host),
            ("http://user@greeter:80", only_host),
            ("https://greeter?x=1", only_host),
            (
                "dns://8.8.8.8/greeter:80",
                "error: a name server in the target (\"8.8.8.8\") is not supported; write dns:///host:port",
            ),
            (
                "dns://greeter:80",
                "error: write dns:///host:port, with three slashes",
            ),
            ("http:greeter:80", "error: write http://host:port"),
            (
                "https:greeter",
                "error: write https://host or https://host:port",
            ),
            // Neither.
            ("", "error: a target must not be empty"),
            ("   ", "error: a target must not be empty"),
            (
                "greeter:80\n",
                "error: a target must not hold control characters",
            ),
            ("sttic:127.0.0.1:1", &unknown("sttic")),
            ("consul:///greeter", &unknown("consul")),
            ("greeter:http", &unknown("greeter")),
        ];
        for (text, expected) in table {
            assert_eq!(read(text), *expected, "{text}");
        }
    }

    #[test]
    fn a_host_has_neither_brackets_nor_a_last_dot() {
        for (text, host) in [
            ("https://greeter.prod.", Some("greeter.prod")),
            ("https://10.0.0.1", Some("10.0.0.1")),
            ("dns:///[::1]:50051", Some("::1")),
            ("static:10.0.0.1:1", None),
            ("unix:/a", None),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().host(), host, "{text}");
        }
    }

    #[test]
    fn a_resolver_of_ones_own_takes_any_scheme() {
        let target = Target::for_resolver("shop://cluster/cart").unwrap();
        assert_eq!((target.scheme(), target.rest()), ("shop", "//cluster/cart"));
        assert!(target.fixed().is_none() && target.name().is_none());
        assert!(Target::for_resolver("").is_err());
    }
}
