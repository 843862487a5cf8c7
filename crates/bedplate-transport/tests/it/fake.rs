//! A registry that does what a test says: each request goes to a closure, which answers with raw bytes,
//! over TLS where the test wants that.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bedplate_model::Sha256;
use bedplate_model::oci::{Compression, OCI_CONFIG, OCI_MANIFEST};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::Digest as _;

/// What a client asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: HashMap<String, String>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the fake says back; the connection ends after it.
pub(crate) enum Reply {
    /// Status line and headers, then bytes, exactly as given.
    Raw(String, Vec<u8>),
    /// Headers, and then bytes until the client has enough.
    Endless(String),
}

impl Reply {
    /// A proper answer.
    pub(crate) fn with(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        Self::Raw(head, body.to_vec())
    }

    pub(crate) fn ok(body: &[u8]) -> Self {
        Self::with(200, &[], body)
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::with(status, &[], b"")
    }
}

/// A registry on this machine.
pub(crate) struct Fake {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Fake {
    pub(crate) fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(move |stream| converse(stream, &answer))
    }

    /// Starts one that speaks TLS, with the certificate in `tests/tls`.
    pub(crate) fn start_tls(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = CertificateDer::from_pem_slice(include_bytes!("../tls/registry.crt"));
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("../tls/registry.key"));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.unwrap()], key.unwrap())
            .unwrap();
        let config = Arc::new(config);
        Self::listen(move |stream| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let outcome = converse(&mut stream, &answer);
            stream.conn.send_close_notify();
            let _ = stream.flush();
            outcome
        })
    }

    fn listen(converse: impl Fn(TcpStream) -> Option<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, converse) = (Arc::clone(&stop), Arc::new(converse));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let converse = Arc::clone(&converse);
                // A client that is gone is part of the game.
                std::thread::spawn(move || converse(stream));
            }
        });
        Self { address, stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn converse(stream: impl Read + Write, answer: &dyn Fn(&Asked) -> Reply) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let method = words.next()?.to_owned();
    let path = words.next()?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    if headers.contains_key("transfer-encoding") {
        pass_over_chunks(&mut reader)?;
    }
    if let Some(len) = headers
        .get("content-length")
        .and_then(|len| len.parse().ok())
    {
        (&mut reader).take(len).read_to_end(&mut Vec::new()).ok()?;
    }
    let asked = Asked {
        method,
        path,
        headers,
    };
    let stream = reader.get_mut();
    match answer(&asked) {
        Reply::Raw(head, body) => {
            write!(stream, "{head}connection: close\r\n\r\n").ok()?;
            stream.write_all(&body).ok()
        }
        Reply::Endless(head) => {
            write!(stream, "{head}connection: close\r\n\r\n").ok()?;
            loop {
                stream.write_all(&[b' '; 65536]).ok()?;
            }
        }
    }
}

fn pass_over_chunks(reader: &mut impl BufRead) -> Option<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let len = u64::from_str_radix(line.trim_end(), 16).ok()?;
        // The chunk, and the end of its line.
        reader.take(len + 2).read_to_end(&mut Vec::new()).ok()?;
        if len == 0 {
            return Some(());
        }
    }
}

/// An image as a registry has it.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) layers: Vec<String>,
}

pub(crate) fn digest(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Makes a tar of regular files in the oldest format.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, bytes) in files {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        header[136..148].copy_from_slice(b"14000000000\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

impl Image {
    /// Makes an image of tars, each with its compression.
    pub(crate) fn new(tars: &[(Compression, Vec<u8>)]) -> Self {
        Self::with_annotations(tars, "{}")
    }

    /// Makes an image whose manifest has annotations, given as JSON; `THE-CONFIG` in it stands for the
    /// config's digest.
    pub(crate) fn with_annotations(tars: &[(Compression, Vec<u8>)], annotations: &str) -> Self {
        let mut blobs = HashMap::new();
        let (mut layers, mut diff_ids, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (compression, tar) in tars {
            let blob = match compression {
                Compression::None => tar.clone(),
                Compression::Gzip => gzip(tar),
                Compression::Zstd => zstd::encode_all(&tar[..], 1).unwrap(),
            };
            layers.push(format!(
                r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#,
                compression.media_type(),
                digest(&blob),
                blob.len()
            ));
            diff_ids.push(format!("\"{}\"", digest(tar)));
            names.push(digest(&blob).to_string());
            blobs.insert(digest(&blob).to_string(), blob);
        }
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let annotations = annotations.replace("THE-CONFIG", &digest(config.as_bytes()).to_string());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":{}}},"layers":[{}],"annotations":{annotations}}}"#,
            digest(config.as_bytes()),
            config.len(),
            layers.join(",")
        );
        blobs.insert(digest(config.as_bytes()).to_string(), config.into_bytes());
        Self {
            manifest: manifest.into_bytes(),
            blobs,
            layers: names,
        }
    }

    /// Answers as a proper registry that has only this image, in every repository.
    pub(crate) fn answer(&self, asked: &Asked) -> Reply {
        if asked.path == "/v2/" {
            return Reply::ok(b"");
        }
        if asked.path.contains("/manifests/") {
            return Reply::ok(&self.manifest);
        }
        let name = asked.path.rsplit('/').next().unwrap();
        match self.blobs.get(name) {
            Some(blob) => Reply::ok(blob),
            None => Reply::status(404),
        }
    }
}
