package pki

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"netd"
)

// Certificate joins a node's certificate, its key and the root to what TLS
// presents. The root is sent too, so that a joiner can pin it by its digest.
func Certificate(certPEM, keyPEM []byte, ca CA) (tls.Certificate, error) {
	der, err := decode(blockCert, certPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read node certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read node certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read node key: %w", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return tls.Certificate{}, errors.New("read node key: it is not the key of the node's certificate")
	}
	if err := leaf.CheckSignatureFrom(ca.Cert); err != nil {
		return tls.Certificate{}, errors.New("read node certificate: it is not signed by the root of this swarm")
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.Cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// ServerTLS is a manager's end: clients may come without a certificate (to
// join), but one that they show must be of this swarm.
func ServerTLS(cert tls.Certificate, ca CA) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    ca.pool(),
		// A resumed session would outlive a change of the trusted root.
		SessionTicketsDisabled: true,
	}
}

// ClientTLS is a node's end: the other one must be a manager of the swarm,
// whatever its address.
func ClientTLS(cert tls.Certificate, ca CA) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		RootCAs:      ca.pool(),
		ServerName:   string(Manager),
	}
}

// PinnedTLS is a joiner's end: the other one must be a manager of the swarm whose
// root the token names.
func PinnedTLS(token string) (*tls.Config, error) {
	digest, _, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	want, err := hex.DecodeString(digest)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: string(Manager), InsecureSkipVerify: true}
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the manager sent no certificate")
		}
		root := cs.PeerCertificates[len(cs.PeerCertificates)-1]
		sum := sha256.Sum256(root.Raw)
		if subtle.ConstantTimeCompare(sum[:], want) != 1 {
			return netd.Errorf(netd.ErrForbidden, "remote CA does not match fingerprint. Expected: %s", digest)
		}
		roots := x509.NewCertPool()
		roots.AddCert(root)
		opts := x509.VerifyOptions{Roots: roots, DNSName: string(Manager)}
		if conf.Time != nil {
			opts.CurrentTime = conf.Time()
		}
		if _, err := cs.PeerCertificates[0].Verify(opts); err != nil {
			return fmt.Errorf("check the manager's certificate: %w", err)
		}
		return nil
	}
	return conf, nil
}

// Identity returns whom the verified certificate at the other end names. A
// connection without one is a netd.ErrForbidden.
func Identity(cs tls.ConnectionState) (Subject, error) {
	if len(cs.VerifiedChains) == 0 || len(cs.PeerCertificates) == 0 {
		return Subject{}, netd.Errorf(netd.ErrForbidden, "a certificate of this swarm is necessary: this node shows none")
	}
	return SubjectOf(cs.PeerCertificates[0])
}

// SubjectOf returns whom a node's certificate names. It does not verify it.
func SubjectOf(cert *x509.Certificate) (Subject, error) {
	n := cert.Subject
	if len(n.OrganizationalUnit) != 1 || len(n.Organization) != 1 || n.CommonName == "" || cert.IsCA {
		return Subject{}, netd.Errorf(netd.ErrForbidden, "the certificate is not that of a node")
	}
	s := Subject{Node: netd.NodeID(n.CommonName), Role: Role(n.OrganizationalUnit[0]), Cluster: n.Organization[0]}
	if s.Role != Worker && s.Role != Manager {
		return Subject{}, netd.Errorf(netd.ErrForbidden, "the certificate of node %s has the unknown role %q", s.Node, s.Role)
	}
	return s, nil
}

func (ca CA) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.Cert)
	return p
}
