package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"netd"
)

func newCA(t *testing.T) (CA, []byte) {
	t.Helper()
	ca, key, err := NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca, key
}

// request makes the key and the request of a node.
func request(t *testing.T) (key, csr []byte) {
	t.Helper()
	key, csr, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

var node1 = Subject{Node: "node1", Role: Worker, Cluster: "cluster1"}

// A root is what swarmkit makes, and survives being written and read; a worker
// reads it without the key and cannot sign.
func TestRoot(t *testing.T) {
	now := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	ca, key, err := NewCA(now)
	if err != nil {
		t.Fatal(err)
	}
	c := ca.Cert
	if c.Subject.CommonName != "swarm-ca" || !c.IsCA || !c.NotBefore.Equal(now.Add(-time.Hour)) || c.NotAfter.Before(now.AddDate(19, 11, 0)) {
		t.Errorf("root %v from %v to %v", c.Subject, c.NotBefore, c.NotAfter)
	}
	again, err := LoadCA(ca.CertPEM, key)
	if err != nil || again.Digest() != ca.Digest() || !bytes.Equal(again.CertPEM, ca.CertPEM) {
		t.Errorf("loaded: %v", err)
	}
	public, err := LoadCA(ca.CertPEM, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, csr := request(t)
	if _, err := public.Sign(csr, node1, 0, now); err == nil {
		t.Error("signed without a key")
	}
	other, otherKey := newCA(t)
	leaf, err := other.Sign(csr, node1, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ cert, key []byte }{
		"other key":  {ca.CertPEM, otherKey},
		"no key":     {ca.CertPEM, []byte("hello")},
		"cert twice": {append(ca.CertPEM, ca.CertPEM...), nil},
		"no cert":    {nil, nil},
		"key first":  {key, key},
		"leaf":       {leaf, nil},
	} {
		if _, err := LoadCA(tc.cert, tc.key); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}

// A certificate names the node, its role and the swarm, lasts as long as asked,
// and takes nothing but the key from the request.
func TestSign(t *testing.T) {
	ca, _ := newCA(t)
	now := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	wish, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"swarm-manager", "evil"}, Subject: ca.Cert.Subject}, ec)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.Sign(encode(blockCSR, wish), node1, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := SubjectOf(cert); err != nil || got != node1 {
		t.Errorf("subject %+v, %v", got, err)
	}
	if strings.Join(cert.DNSNames, " ") != "swarm-worker node1" || cert.IsCA || cert.CheckSignatureFrom(ca.Cert) != nil {
		t.Errorf("certificate for %v", cert.DNSNames)
	}
	if !cert.NotBefore.Equal(now.Add(-time.Hour)) || !cert.NotAfter.Equal(now.Add(90*24*time.Hour)) {
		t.Errorf("from %v to %v", cert.NotBefore, cert.NotAfter)
	}
}

// What cannot be a node's certificate is not signed.
func TestSignRefuses(t *testing.T) {
	ca, _ := newCA(t)
	_, good := request(t)
	tampered := func() []byte {
		block, _ := pem.Decode(good)
		block.Bytes[len(block.Bytes)/2] ^= 1 // within the public key
		return encode(blockCSR, block.Bytes)
	}()
	signature := func() []byte {
		block, _ := pem.Decode(good)
		block.Bytes[len(block.Bytes)-1] ^= 1
		return encode(blockCSR, block.Bytes)
	}()
	old, _ := rsa.GenerateKey(rand.Reader, 2048)
	rsaCSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, old)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		csr      []byte
		subject  Subject
		lifetime time.Duration
	}{
		"tampered key":       {tampered, node1, 0},
		"tampered signature": {signature, node1, 0},
		"rsa":                {encode(blockCSR, rsaCSR), node1, 0},
		"two requests":       {append(bytes.Clone(good), good...), node1, 0},
		"no request":         {nil, node1, 0},
		"a certificate":      {ca.CertPEM, node1, 0},
		"no node":            {good, Subject{Role: Worker, Cluster: "c"}, 0},
		"no cluster":         {good, Subject{Node: "n", Role: Worker}, 0},
		"unknown role":       {good, Subject{Node: "n", Role: "swarm-king", Cluster: "c"}, 0},
		"too short":          {good, node1, time.Minute},
	} {
		if cert, err := ca.Sign(tc.csr, tc.subject, tc.lifetime, time.Now()); err == nil {
			t.Errorf("%s: signed %s", name, cert)
		}
	}
}

// A token carries the digest of its root, whatever the root, and a secret that no
// other token has; it parses back to both.
func TestTokens(t *testing.T) {
	format := regexp.MustCompile(`^SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}$`)
	ca, _ := newCA(t)
	seen := map[string]bool{}
	for range 100 {
		token, err := NewToken(ca)
		if err != nil {
			t.Fatal(err)
		}
		digest, secret, err := ParseToken(token)
		if err != nil || digest != ca.Digest() || seen[secret] || !format.MatchString(token) {
			t.Fatalf("%s: digest %s, secret seen %t, %v", token, digest, seen[secret], err)
		}
		seen[secret] = true
	}
	rapid.Check(t, func(t *rapid.T) {
		sum := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "sum")
		digest, _, err := ParseToken(tokenPrefix + base36(sum, digestChars) + "-" + strings.Repeat("0", secretChars))
		if err != nil || len(digest) != 64 {
			t.Fatalf("digest %q: %v", digest, err)
		}
	})
}

// Text that is no token is refused in swarmkit's words, without repeating it.
func TestBadTokens(t *testing.T) {
	ca, _ := newCA(t)
	token, err := NewToken(ca)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "SWMTKN-1-", "hello", token[:len(token)-1], token + "0", token[1:], strings.ToUpper(token),
		strings.Replace(token, "-1-", "-2-", 1), token[:40] + "-" + token[41:], token[:30] + "é" + token[32:],
		tokenPrefix + strings.Repeat("z", digestChars) + "-" + strings.Repeat("z", secretChars), // more than 256 bits
	} {
		_, _, err := ParseToken(bad)
		if !errors.Is(err, netd.ErrInvalid) || err.Error() != "invalid join token" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if !SameToken(token, token) || SameToken(token, token[:20]) || SameToken("", "") || SameToken(token, strings.ToUpper(token)) {
		t.Error("tokens are compared wrongly")
	}
}

// IDs are Docker's in form, and differ.
func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := NewID()
		if !isBase36(id, 25) || seen[id] {
			t.Fatalf("ID %q", id)
		}
		seen[id] = true
	}
}

// A request for a key that a node has asks for that key and no other; what is no
// key is refused without being repeated.
func TestRequestForAKey(t *testing.T) {
	ca, _ := newCA(t)
	key, _ := request(t)
	csr, err := NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(csr, node1, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Certificate(cert, key, ca); err != nil {
		t.Error(err)
	}
	if _, err := NewRequest(csr); err == nil || strings.Contains(err.Error(), "MII") {
		t.Errorf("got %v", err)
	}
}
