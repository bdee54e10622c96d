// Package authenticode signs EFI programs as UEFI Secure Boot wants them signed:
// PKCS #7 in the certificate table of a PE file. The signature has no time in it,
// so that one program, key and certificate always give the same bytes. Sources:
// "Windows Authenticode Portable Executable Signature Format" (Microsoft, 2008),
// RFC 2315, and UEFI 2.10, 32.2.4.
package authenticode

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"unicode/utf16"
)

// Signer signs with an RSA key.
type Signer struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
	size int
}

// Firmware knows RSA with 2048 bits and, for the most part, up to 4096.
const minBits, maxBits = 2048, 4096

// MaxFile is how many bytes a file with a key or a certificate may have.
const MaxFile = 64 << 10

// New makes a signer of the PEM text of a private key (PKCS #8 or PKCS #1) and of
// its certificate (PEM or DER).
func New(key, certificate []byte) (*Signer, error) {
	k, err := parseKey(key)
	if err != nil {
		return nil, fmt.Errorf("the key: %w", err)
	}
	c, err := parseCertificate(certificate)
	if err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	if !k.PublicKey.Equal(c.PublicKey) {
		return nil, errors.New("the certificate belongs to another key")
	}
	s := &Signer{key: k, cert: c}
	table, err := s.Table([sha256.Size]byte{})
	s.size = len(table)
	return s, err
}

func parseKey(text []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || len(text) > MaxFile {
		return nil, errors.New("it is not PEM")
	}
	var k any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		k, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		if block.Headers["DEK-Info"] != "" {
			return nil, errors.New("it is encrypted")
		}
		k, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("it is encrypted")
	default:
		return nil, fmt.Errorf("it is a %q", block.Type)
	}
	if err != nil {
		return nil, err
	}
	r, ok := k.(*rsa.PrivateKey)
	if !ok || r.N.BitLen() < minBits || r.N.BitLen() > maxBits {
		return nil, fmt.Errorf("it is not RSA with %d to %d bits, which firmware wants", minBits, maxBits)
	}
	return r, nil
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("it has more than %d bytes", MaxFile)
	}
	if block, _ := pem.Decode(data); block != nil {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it is a %q", block.Type)
		}
		data = block.Bytes
	}
	return x509.ParseCertificate(data)
}

var (
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidRSA           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidIndirectData  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImageData   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
)

type algorithm struct {
	OID        asn1.ObjectIdentifier
	Parameters asn1.RawValue
}

func algorithmOf(oid asn1.ObjectIdentifier) algorithm { return algorithm{oid, asn1.NullRawValue} }

type indirectData struct {
	Data struct {
		Type  asn1.ObjectIdentifier
		Value struct {
			Flags asn1.BitString
			File  asn1.RawValue // SpcLink
		}
	}
	Digest struct {
		Algorithm algorithm
		Digest    []byte
	}
}

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue // [0] EXPLICIT
}

type signedData struct {
	Version      int
	Digests      []algorithm `asn1:"set"`
	Content      contentInfo
	Certificates asn1.RawValue // [0] IMPLICIT
	Signers      []signerInfo  `asn1:"set"`
}

type signerInfo struct {
	Version    int
	Issuer     issuerAndSerial
	Digest     algorithm
	Attributes asn1.RawValue // [0] IMPLICIT
	Algorithm  algorithm
	Signature  []byte
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values asn1.RawValue // SET
}

func tagged(class, tag int, content []byte) asn1.RawValue {
	return asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: content}
}

// obsolete is what the format has in place of the name of the file.
const obsolete = "<<<Obsolete>>>"

// indirect encodes what is signed: SpcIndirectDataContent.
func indirect(digest []byte) ([]byte, error) {
	var d indirectData
	d.Data.Type = oidPEImageData
	var name []byte
	for _, u := range utf16.Encode([]rune(obsolete)) {
		name = binary.BigEndian.AppendUint16(name, u)
	}
	// SpcPeImageData.file [0] -> SpcLink.file [2] -> SpcString.unicode [0] IMPLICIT
	text, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: name})
	if err != nil {
		return nil, err
	}
	link, err := asn1.Marshal(tagged(asn1.ClassContextSpecific, 2, text))
	if err != nil {
		return nil, err
	}
	d.Data.Value.File = tagged(asn1.ClassContextSpecific, 0, link)
	d.Digest.Algorithm, d.Digest.Digest = algorithmOf(oidSHA256), digest
	return asn1.Marshal(d)
}

// attributes encodes, in the order of DER, what vouches for the content.
func attributes(content []byte) ([]byte, error) {
	// The digest is of the content without its tag and length.
	var value asn1.RawValue
	if _, err := asn1.Unmarshal(content, &value); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(value.Bytes)
	var out []byte
	for _, a := range []struct {
		oid   asn1.ObjectIdentifier
		value any
	}{{oidContentType, oidIndirectData}, {oidMessageDigest, sum[:]}} {
		v, err := asn1.Marshal(a.value)
		if err != nil {
			return nil, err
		}
		text, err := asn1.Marshal(attribute{a.oid, tagged(asn1.ClassUniversal, asn1.TagSet, v)})
		if err != nil {
			return nil, err
		}
		out = append(out, text...)
	}
	return out, nil
}

// sign returns the PKCS #7 signature of a program with that digest.
func (s *Signer) sign(digest []byte) ([]byte, error) {
	content, err := indirect(digest)
	if err != nil {
		return nil, err
	}
	attrs, err := attributes(content)
	if err != nil {
		return nil, err
	}
	// What is signed has the tag of the SET that it stands for.
	set, err := asn1.Marshal(tagged(asn1.ClassUniversal, asn1.TagSet, attrs))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(set)
	signature, err := rsa.SignPKCS1v15(nil, s.key, crypto.SHA256, sum[:])
	if err != nil {
		return nil, err
	}
	data, err := asn1.Marshal(signedData{
		Version: 1, Digests: []algorithm{algorithmOf(oidSHA256)},
		Content:      contentInfo{oidIndirectData, tagged(asn1.ClassContextSpecific, 0, content)},
		Certificates: tagged(asn1.ClassContextSpecific, 0, s.cert.Raw),
		Signers: []signerInfo{{
			Version: 1, Issuer: issuerAndSerial{asn1.RawValue{FullBytes: s.cert.RawIssuer}, s.cert.SerialNumber},
			Digest: algorithmOf(oidSHA256), Attributes: tagged(asn1.ClassContextSpecific, 0, attrs),
			Algorithm: algorithmOf(oidRSA), Signature: signature,
		}},
	})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{oidSignedData, tagged(asn1.ClassContextSpecific, 0, data)})
}

// WIN_CERTIFICATE of revision 2, with PKCS #7 in it.
const (
	entryHeader   = 8
	entryRevision = 0x0200
	entryPKCS7    = 0x0002
)

// TableSize implements pefile.Signer.
func (s *Signer) TableSize() int { return s.size }

// Table implements pefile.Signer.
func (s *Signer) Table(digest [sha256.Size]byte) ([]byte, error) {
	signature, err := s.sign(digest[:])
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	n := (entryHeader + len(signature) + 7) / 8 * 8
	table := make([]byte, n)
	binary.LittleEndian.PutUint32(table, uint32(n))
	binary.LittleEndian.PutUint16(table[4:], entryRevision)
	binary.LittleEndian.PutUint16(table[6:], entryPKCS7)
	copy(table[entryHeader:], signature)
	return table, nil
}
