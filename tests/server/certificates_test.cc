#include "server/certificates.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "openssl/evp.h"
#include "openssl/pem.h"
#include "openssl/x509.h"
#include "tests/server/temp_file.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;

std::string Text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<size_t>(size));
  BIO_free(bio);
  return text;
}

struct Pem {
  std::string certificate;
  std::string key;
};

// A certificate that has signed itself.
Pem MakePem(absl::Duration lifetime = absl::Hours(24),
            absl::Duration begin = -absl::Hours(2),
            EVP_PKEY* key = EVP_EC_gen("P-256")) {
  X509* const certificate = X509_new();
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate),
                  absl::ToInt64Seconds(begin));
  X509_gmtime_adj(X509_getm_notAfter(certificate),
                  absl::ToInt64Seconds(lifetime));
  X509_set_pubkey(certificate, key);
  X509_sign(certificate, key, EVP_sha256());
  BIO* const certificate_text = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(certificate_text, certificate);
  BIO* const key_text = BIO_new(BIO_s_mem());
  PEM_write_bio_PrivateKey(key_text, key, nullptr, nullptr, 0, nullptr,
                           nullptr);
  X509_free(certificate);
  EVP_PKEY_free(key);
  return {Text(certificate_text), Text(key_text)};
}

class CertificatesTest : public ::testing::Test {
 protected:
  CertificatesTest()
      : certificate_("cert.pem", first_.certificate),
        key_("key.pem", first_.key),
        client_ca_("ca.pem", first_.certificate) {}

  CertificatePaths Paths(bool with_clients = false) const {
    return {certificate_.path(), key_.path(),
            with_clients ? client_ca_.path() : ""};
  }
  std::string ErrorOf(const CertificatePaths& paths) {
    const auto made = Certificates::FromFiles(paths);
    return made.ok() ? "" : std::string(made.status().message());
  }

  const Pem first_ = MakePem();
  const Pem second_ = MakePem(absl::Hours(48));
  const TempFile certificate_;
  const TempFile key_;
  const TempFile client_ca_;
};

TEST_F(CertificatesTest, GoodFilesServe) {
  const auto plain = Certificates::FromFiles(Paths());
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_NE((*plain)->credentials(), nullptr);
  EXPECT_EQ((*plain)->client_ca_expiry(), std::nullopt);
  EXPECT_NEAR(absl::ToDoubleSeconds((*plain)->server_expiry() - absl::Now()),
              24 * 3600, 60);
  const auto mutual = Certificates::FromFiles(Paths(true));
  ASSERT_TRUE(mutual.ok()) << mutual.status();
  EXPECT_NE((*mutual)->credentials(), nullptr);
  EXPECT_EQ((*mutual)->client_ca_expiry(), (*mutual)->server_expiry());
}

TEST_F(CertificatesTest, WhatIsBadIsNamed) {
  EXPECT_THAT(ErrorOf({"/no/such/file", key_.path(), ""}),
              HasSubstr("/no/such/file"));
  key_.Write(second_.key);
  EXPECT_THAT(ErrorOf(Paths()), HasSubstr("is not the key of"));
  key_.Write("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
  EXPECT_THAT(ErrorOf(Paths()), HasSubstr("holds no private key"));
  certificate_.Write("nothing");
  EXPECT_THAT(ErrorOf(Paths()), HasSubstr("holds no certificates"));
  certificate_.Write(first_.certificate.substr(0, 200));
  EXPECT_THAT(ErrorOf(Paths()), HasSubstr("holds no certificates"));
  certificate_.Write(first_.certificate + "-----BEGIN CERTIFICATE-----\nAA");
  EXPECT_THAT(ErrorOf(Paths()), HasSubstr("holds no certificates"));
  const Pem future = MakePem(absl::Hours(24), absl::Hours(1));
  certificate_.Write(future.certificate);
  key_.Write(future.key);
  EXPECT_THAT(ErrorOf(Paths()), HasSubstr("not valid before"));
  const Pem weak = MakePem(absl::Hours(24), -absl::Hours(2), EVP_RSA_gen(1024));
  certificate_.Write(weak.certificate);
  key_.Write(weak.key);
  EXPECT_THAT(ErrorOf(Paths()), HasSubstr("not fit for TLS"));
  const Pem old = MakePem(-absl::Hours(1));
  certificate_.Write(old.certificate);
  key_.Write(old.key);
  EXPECT_THAT(ErrorOf(Paths()), HasSubstr("has expired on"));
  certificate_.Write(first_.certificate);
  key_.Write(first_.key);
  client_ca_.Write(old.certificate);
  EXPECT_THAT(ErrorOf(Paths(true)), HasSubstr("have expired"));
  client_ca_.Write("");
  EXPECT_THAT(ErrorOf(Paths(true)), HasSubstr("holds no certificates"));
}

TEST_F(CertificatesTest, AnIssuerEndsTheChain) {
  certificate_.Write(second_.certificate + first_.certificate);
  key_.Write(second_.key);
  const auto made = Certificates::FromFiles(Paths());
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_NEAR(absl::ToDoubleSeconds((*made)->server_expiry() - absl::Now()),
              24 * 3600, 60);
  certificate_.Write(second_.certificate +
                     MakePem(-absl::Hours(1)).certificate);
  EXPECT_THAT(ErrorOf(Paths()), HasSubstr("has expired on"));
}

// What gRPC reads is what was checked.
TEST_F(CertificatesTest, OtherThingsInTheFilesAreLeftOut) {
  certificate_.Write("some text\n" + second_.key + first_.certificate);
  const auto made = Certificates::FromFiles(Paths());
  ASSERT_TRUE(made.ok()) << made.status();
  certificate_.Write(first_.certificate);
  EXPECT_EQ((*made)->LookAgain(), Reload::kUnchanged);
}

TEST_F(CertificatesTest, ABundleMayHoldOldOnes) {
  client_ca_.Write(MakePem(-absl::Hours(1)).certificate + second_.certificate +
                   first_.certificate);
  const auto made = Certificates::FromFiles(Paths(true));
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)->client_ca_expiry(), (*made)->server_expiry());
}

TEST_F(CertificatesTest, AChangeIsTakenOnceItIsWhole) {
  const auto made = Certificates::FromFiles(Paths());
  ASSERT_TRUE(made.ok()) << made.status();
  Certificates& certificates = **made;
  const absl::Time first = certificates.server_expiry();
  EXPECT_EQ(certificates.LookAgain(), Reload::kUnchanged);
  key_.Write(second_.key);  // the half of a rotation
  EXPECT_EQ(certificates.LookAgain(), Reload::kFailed);
  EXPECT_EQ(certificates.LookAgain(), Reload::kUnchanged);  // told once
  EXPECT_EQ(certificates.server_expiry(), first);
  certificate_.Write(second_.certificate);
  EXPECT_EQ(certificates.LookAgain(), Reload::kLoaded);
  EXPECT_EQ(certificates.LookAgain(), Reload::kUnchanged);
  EXPECT_GT(certificates.server_expiry(), first);
}

TEST_F(CertificatesTest, GoingBackIsNoChange) {
  const auto made = Certificates::FromFiles(Paths());
  ASSERT_TRUE(made.ok()) << made.status();
  certificate_.Remove();
  EXPECT_EQ((*made)->LookAgain(), Reload::kFailed);
  certificate_.Write(first_.certificate);
  EXPECT_EQ((*made)->LookAgain(), Reload::kUnchanged);
  certificate_.Remove();
  EXPECT_EQ((*made)->LookAgain(), Reload::kFailed);
}

}  // namespace
}  // namespace overfill
