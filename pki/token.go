package pki

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"math/big"
	"strings"

	"netd"
)

// A join token is "SWMTKN-1-<digest of the root>-<secret>", both in base 36 with
// leading zeroes: 50 characters hold 256 bits, 25 hold 128.
const (
	tokenPrefix = "SWMTKN-1-"
	digestChars = 50
	secretChars = 25
	idChars     = 25
)

// NewToken makes a join token with a new secret for the swarm of ca.
func NewToken(ca CA) (string, error) {
	secret, err := random128(secretChars)
	if err != nil {
		return "", fmt.Errorf("make join token: %w", err)
	}
	return tokenPrefix + base36(ca.sum(), digestChars) + "-" + secret, nil
}

// ParseToken takes a join token apart: the digest in hexadecimal, as of
// CA.Digest, and the secret.
func ParseToken(token string) (digest, secret string, err error) {
	// swarmkit's words. The token itself must not appear in the error.
	invalid := netd.Errorf(netd.ErrInvalid, "invalid join token")
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok {
		return "", "", invalid
	}
	digest36, secret, ok := strings.Cut(rest, "-")
	if !ok || !isBase36(digest36, digestChars) || !isBase36(secret, secretChars) {
		return "", "", invalid
	}
	sum, ok := new(big.Int).SetString(digest36, 36)
	if !ok || sum.BitLen() > 256 {
		return "", "", invalid
	}
	return fmt.Sprintf("%064x", sum), secret, nil
}

// SameToken compares two tokens in a time that does not tell where they differ.
// An empty token is the same as no other.
func SameToken(a, b string) bool {
	return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}

// NewID makes an object's or a node's ID: 25 characters of base 36, 124 random
// bits and more, as Docker's are.
func NewID() string {
	id, err := random128(idChars)
	if err != nil {
		panic(err) // crypto/rand.Read does not fail (its documentation)
	}
	return id
}

func random128(chars int) (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return base36(b[:], chars), nil
}

func base36(b []byte, chars int) string {
	s := new(big.Int).SetBytes(b).Text(36)
	return strings.Repeat("0", chars-len(s)) + s
}

func isBase36(s string, chars int) bool {
	if len(s) != chars {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
