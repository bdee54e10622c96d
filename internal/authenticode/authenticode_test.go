package authenticode

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

func newKey(t *testing.T) (key, certificate []byte) {
	t.Helper()
	key, certificate, err := lab.SigningKey("kedge test")
	if err != nil {
		t.Fatal(err)
	}
	return key, certificate
}

// TestTable reads what was signed back and verifies it; programs of others do in
// package uki.
func TestTable(t *testing.T) {
	key, certificate := newKey(t)
	s, err := New(key, certificate)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("a program"))
	table, err := s.Table(digest)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(table); n != s.TableSize() || n%8 != 0 || int(binary.LittleEndian.Uint32(table)) != n ||
		!bytes.Equal(table[4:8], []byte{0, 2, 2, 0}) {
		t.Errorf("the table has %d bytes, %d were told, and begins with %x", n, s.TableSize(), table[:8])
	}
	if again, err := s.Table(digest); err != nil || !bytes.Equal(again, table) {
		t.Errorf("signed again it has other bytes (%v)", err)
	}
	var outer contentInfo
	rest, err := asn1.Unmarshal(table[8:], &outer)
	if err != nil || !outer.Type.Equal(oidSignedData) || len(bytes.Trim(rest, "\x00")) > 0 {
		t.Fatalf("outside it is %v, %x behind it, %v", outer.Type, rest, err)
	}
	var d signedData
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &d); err != nil {
		t.Fatal(err)
	}
	var inner indirectData
	if _, err := asn1.Unmarshal(d.Content.Content.Bytes, &inner); err != nil || !bytes.Equal(inner.Digest.Digest, digest[:]) {
		t.Errorf("the digest in it is %x, %v", inner.Digest.Digest, err)
	}
	cert, err := x509.ParseCertificate(d.Certificates.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	set := bytes.Clone(d.Signers[0].Attributes.FullBytes)
	set[0] = 0x31
	sum := sha256.Sum256(set)
	if err := rsa.VerifyPKCS1v15(cert.PublicKey.(*rsa.PublicKey), crypto.SHA256, sum[:], d.Signers[0].Signature); err != nil {
		t.Error(err)
	}
}

func TestNew(t *testing.T) {
	key, certificate := newKey(t)
	other, otherCertificate := newKey(t)
	block := func(kind string, data []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data})
	}
	der, _ := pem.Decode(key)
	parsed, err := x509.ParsePKCS8PrivateKey(der.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := x509.MarshalPKCS1PrivateKey(parsed.(*rsa.PrivateKey))
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := x509.MarshalPKCS8PrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	certDER, _ := pem.Decode(certificate)
	for name, c := range map[string]struct {
		key, certificate []byte
		words            string
	}{
		"both":              {key, certificate, ""},
		"PKCS #1":           {block("RSA PRIVATE KEY", pkcs1), certificate, ""},
		"DER":               {key, certDER.Bytes, ""},
		"another":           {key, otherCertificate, "belongs to another key"},
		"the other way":     {other, certificate, "belongs to another key"},
		"no PEM":            {[]byte("key"), certificate, "the key: it is not PEM"},
		"huge":              {append(bytes.Clone(key), make([]byte, MaxFile)...), certificate, "not PEM"},
		"encrypted":         {block("ENCRYPTED PRIVATE KEY", der.Bytes), certificate, "it is encrypted"},
		"damaged":           {block("PRIVATE KEY", der.Bytes[:100]), certificate, "the key: "},
		"no key":            {certificate, certificate, `it is a "CERTIFICATE"`},
		"an elliptic curve": {block("PRIVATE KEY", ec), certificate, "not RSA with 2048 to 4096 bits"},
		"no certificate":    {key, key, `the certificate: it is a "PRIVATE KEY"`},
		"half certificate":  {key, certDER.Bytes[:200], "the certificate: "},
		"huge certificate":  {key, make([]byte, MaxFile+1), "more than 65536 bytes"},
	} {
		_, err := New(c.key, c.certificate)
		if c.words == "" && err != nil || c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words)) {
			t.Errorf("%s: %v, want %q", name, err, c.words)
		}
	}
}
