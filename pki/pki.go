// Package pki is the swarm's certificates and join tokens: a root CA, node
// certificates that carry the node's ID and role, and the TLS configurations
// that trust nothing else.
//
// It does NOT read or write files or the network, and decides of no node whether
// it may join.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"netd"
)

// Role is what a certificate entitles its node to: its organizational unit.
type Role string

// The roles, as swarmkit names them in certificates.
const (
	Worker  Role = "swarm-worker"
	Manager Role = "swarm-manager"
)

// NodeLifetime is how long a node's certificate lasts unless the swarm's spec
// says otherwise.
const NodeLifetime = 90 * 24 * time.Hour

// MinLifetime is the least that a node's certificate may be good for, as in
// swarmkit: a node must have the time to renew it.
const MinLifetime = time.Hour

const (
	rootName     = "swarm-ca"
	rootLifetime = 20 * 365 * 24 * time.Hour
	// backdate forgives a node whose clock is behind the signer's.
	backdate = time.Hour

	blockCert = "CERTIFICATE"
	blockKey  = "PRIVATE KEY"
	blockCSR  = "CERTIFICATE REQUEST"
)

// Subject is whom a node's certificate names.
type Subject struct {
	Node    netd.NodeID
	Role    Role
	Cluster string
}

// CA is the swarm's root, with its key on managers and without it on workers.
type CA struct {
	Cert    *x509.Certificate
	CertPEM []byte
	key     crypto.Signer
}

// NewCA makes a new root.
func NewCA(now time.Time) (ca CA, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return CA{}, nil, fmt.Errorf("make root key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return CA{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: rootName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1, // leaves room for a cross-signed root
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return CA{}, nil, fmt.Errorf("sign root certificate: %w", err)
	}
	if keyPEM, err = marshalKey(key); err != nil {
		return CA{}, nil, err
	}
	ca, err = LoadCA(encode(blockCert, der), keyPEM)
	return ca, keyPEM, err
}

// LoadCA reads a root. Without keyPEM it can verify but not sign.
func LoadCA(certPEM, keyPEM []byte) (CA, error) {
	der, err := decode(blockCert, certPEM)
	if err != nil {
		return CA{}, fmt.Errorf("read root certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return CA{}, fmt.Errorf("read root certificate: %w", err)
	}
	if !cert.IsCA || cert.CheckSignatureFrom(cert) != nil {
		return CA{}, errors.New("read root certificate: it is not the certificate of a root")
	}
	ca := CA{Cert: cert, CertPEM: encode(blockCert, der)}
	if len(keyPEM) == 0 {
		return ca, nil
	}
	if ca.key, err = parseKey(keyPEM); err != nil {
		return CA{}, fmt.Errorf("read root key: %w", err)
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(ca.key.Public()) {
		return CA{}, errors.New("read root key: it is not the key of the root certificate")
	}
	return ca, nil
}

// Digest names the root: the SHA-256 of its certificate in hexadecimal. A join
// token carries the same digest in base 36.
func (ca CA) Digest() string { return hex.EncodeToString(ca.sum()) }

func (ca CA) sum() []byte {
	sum := sha256.Sum256(ca.Cert.Raw)
	return sum[:]
}

// Sign makes a node's certificate from the key in csrPEM; everything else that
// the request asks for is ignored. A zero lifetime means NodeLifetime.
func (ca CA) Sign(csrPEM []byte, s Subject, lifetime time.Duration, now time.Time) (certPEM []byte, err error) {
	if ca.key == nil {
		return nil, errors.New("sign certificate: this node does not hold the key of the root")
	}
	if s.Node == "" || s.Cluster == "" || (s.Role != Worker && s.Role != Manager) {
		return nil, fmt.Errorf("sign certificate: incomplete subject: node %q, role %q, cluster %q", s.Node, s.Role, s.Cluster)
	}
	if lifetime == 0 {
		lifetime = NodeLifetime
	}
	if lifetime < MinLifetime {
		return nil, fmt.Errorf("sign certificate: a lifetime of %v is less than %v", lifetime, MinLifetime)
	}
	pub, err := requestedKey(csrPEM)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			CommonName: string(s.Node), OrganizationalUnit: []string{string(s.Role)}, Organization: []string{s.Cluster},
		},
		// A client asks for the role by name, so that no worker can pass for a manager.
		DNSNames:              []string{string(s.Role), string(s.Node)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", s.Node, err)
	}
	return encode(blockCert, der), nil
}

// NewKey makes a node's key and the request to sign it. The key stays on the node.
func NewKey() (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make node key: %w", err)
	}
	if keyPEM, err = marshalKey(key); err != nil {
		return nil, nil, err
	}
	csrPEM, err = newRequest(key)
	return keyPEM, csrPEM, err
}

// NewRequest makes the request to sign a key that a node has already.
func NewRequest(keyPEM []byte) (csrPEM []byte, err error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	return newRequest(key)
}

func newRequest(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return encode(blockCSR, der), nil
}

// requestedKey returns the public key of a request that proves to own it.
func requestedKey(csrPEM []byte) (*ecdsa.PublicKey, error) {
	der, err := decode(blockCSR, csrPEM)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check certificate request: %w", err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("check certificate request: its key is not an ECDSA P-256 key")
	}
	return pub, nil
}

func newSerial() (*big.Int, error) {
	// 20 octets at most (RFC 5280, 4.1.2.2), and positive.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func marshalKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return encode(blockKey, der), nil
}

func parseKey(keyPEM []byte) (*ecdsa.PrivateKey, error) {
	der, err := decode(blockKey, keyPEM)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("it is not a PKCS #8 key") // x509's error may quote it
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("it is not an ECDSA P-256 key")
	}
	return ec, nil
}

func encode(block string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})
}

// decode reads exactly one PEM block of the type.
func decode(block string, data []byte) ([]byte, error) {
	b, rest := pem.Decode(data)
	if b == nil || b.Type != block {
		return nil, fmt.Errorf("there is no PEM block %q", block)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("there is more than one PEM block %q", block)
	}
	return b.Bytes, nil
}
