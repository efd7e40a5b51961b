package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// errSeal: sealed data was changed, moved, or sealed with another key.
var errSeal = errors.New("its seal is broken")

const dataKeySize = 32 // AES-256

// dataKey seals all that the store writes. It lies beside the files, so it
// protects a copy of the files without it, not a copy of the directory.
type dataKey [dataKeySize]byte

const keyHeader = "netd-store-key-1"

func newDataKey() dataKey {
	var k dataKey
	rand.Read(k[:]) // never fails: its documentation
	return k
}

// marshal writes the key with a checksum, so that damage to the key's own file
// is not taken for damage to all the others.
func (k dataKey) marshal() []byte {
	return fmt.Appendf(nil, "%s %x %s\n", keyHeader, k[:], k.checksum())
}

func (k dataKey) checksum() string {
	sum := sha256.Sum256(append([]byte(keyHeader), k[:]...))
	return hex.EncodeToString(sum[:4])
}

func parseDataKey(data []byte) (dataKey, error) {
	// Nothing of the file may appear in the error.
	bad := errors.New("it is not a key of the store")
	var k dataKey
	fields := strings.Split(strings.TrimSuffix(string(data), "\n"), " ")
	if len(fields) != 3 || fields[0] != keyHeader || len(fields[1]) != 2*dataKeySize {
		return k, bad
	}
	raw, err := hex.DecodeString(fields[1])
	if err != nil {
		return k, bad
	}
	copy(k[:], raw)
	if fields[2] != k.checksum() {
		return dataKey{}, bad
	}
	return k, nil
}

// aead returns the cipher under the key for one purpose: "log", or a snapshot
// with its salt.
func (k dataKey) aead(salt []byte, purpose string) (cipher.AEAD, error) {
	sub, err := hkdf.Key(sha256.New, k[:], salt, "netd store "+purpose, dataKeySize)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	block, err := aes.NewCipher(sub)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return cipher.NewGCM(block)
}

// sealer seals single values under random nonces: good for 2^32 values.
type sealer struct{ aead cipher.AEAD }

// seal binds plain to its place, so that it opens nowhere else.
func (s sealer) seal(plain, place []byte) []byte {
	out := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(plain)+s.aead.Overhead())
	rand.Read(out)
	return s.aead.Seal(out, out, plain, place)
}

func (s sealer) open(sealed, place []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < n+s.aead.Overhead() {
		return nil, errSeal
	}
	plain, err := s.aead.Open(nil, sealed[:n], sealed[n:], place)
	if err != nil {
		return nil, errSeal
	}
	return plain, nil
}
