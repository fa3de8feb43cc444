"""The fields of each kind of record, with the types of their values."""

from __future__ import annotations

import re
from functools import cache
from typing import Final, NamedTuple

_TRACKED: Final = "createdDate updatedDate"
_SUMS: Final = "totalDiscountAmount totalDiscountPercentage totalGrossAmount totalNetAmount totalTaxAmount"
_PRICE: Final = "unitAmount unitDiscountAmount unitDiscountPercentage unitName"
_TAX: Final = "taxCode taxRatePercentage"
_SIDE: Final = "debitCreditIndicator:DEBIT|CREDIT"
_PLACE: Final = "addressLine1 addressLine2 city countryCode:country postalCode"
_STATE: Final = (
    "status:DRAFT|CORRECTIVE|SUBMITTED|DOCUMENT_CREATED|OPEN|PARTIALLY_PAID|PAID|PARTIALLY_OVERDUE|OVERDUE|VOIDED"
)
_PAID: Final = (
    "paymentStatus:NO_OPEN_ITEM|PENDING|PARTLY_PAID|PAID|DEBITED|CREDIT_NOTE_CLEARED|CLEARED_WITH_CREDIT_NOTE|"
    "BAD_DEBT|PARTIAL_CANCELLATION|CANCELED|UNKNOWN"
)
_TAX_RULE: Final = "taxRule:NET|GROSS|TAXFREE|REVERSE_CHARGE|EXPORT_GOODS|EXPORT_SERVICE|OSS_GOODS|OSS_SERVICES"
_SHIPPING: Final = "shippingDate shippingType:SERVICE|SERVICE_PERIOD|DELIVERY|DELIVERY_PERIOD"
_BATCH: Final = "id accountNumberLength:number chartOfAccount createdDate fiscalYearStartDate taskId"
_BILL: Final = (
    f"id accountId addresses:[address] contactId currency deliveryDate dueDate fileId journalCode lineItems:[billLine] "
    f"name oneLineAddress paidDate paymentReference {_PAID} paymentDays:number reference {_SHIPPING} {_STATE} "
    f"{_TAX_RULE} taxText {_SUMS} {_TRACKED}"
)
_PROPOSAL: Final = (
    "id bookingProposalDate currency deliveryDate discountPaymentDate discountPaymentDate2 dueDate files:[] "
    "journalCode isPaymentOrder ledgerName notes number orderId paidDate "
    "status:DRAFT|SUBMITTED|OPEN|PARTIALLY_PAID|PAID|OVERDUE|VOIDED|DISPUTED|CANCELLED totalGrossAmount vatId "
    f"{_TRACKED}"
)
_PROPOSAL_LINE: Final = (
    "id description discountAmount discountAmount2 discountPercentage discountPercentage2 "
    f"{_TAX} totalGrossAmount totalNetAmount {_TRACKED}"
)

# A field is a name, or a name and a type: a kind, the allowed values, ``@`` for one record, ``[…]`` for several.
# Without a type, the name decides: ``dueDate`` is a moment, ``totalAmount`` an amount, ``isCustomer`` a flag, and
# everything else is text. The id comes first.
_FIELDS: Final[dict[str, str]] = {
    "account": f"id name number code type class:ASSET|EQUITY|EXPENSE|LIABILITY|REVENUE balance:amount {_SIDE} currency "
    f"description parentAccountId status:ACTIVE|ARCHIVED {_TRACKED}",
    "bankAccount": "id name number bankName bic iban balance:amount currency description system type "
    f"fileType:CSV|MT940 status:ACTIVE|ARCHIVED {_TRACKED}",
    "bill": f"{_BILL} billDate billNumber paymentTermCode",
    "billLine": f"id itemId itemName accountId accountNumber description quantity {_PRICE} {_SUMS} {_TAX} "
    f"dimensions:[billDimension] deferredStartDate deferredEndDate {_TRACKED}",
    "bookingProposal": f"{_PROPOSAL} accountName addresses:[nothing] bankAccountId bankAccountNumber:number bankCode "
    "bic iban contactId contactName contactAccountNumber:number lineItems:[proposalLine] paymentTermsId taskId "
    "bookingType:INVOICE|BILL|CREDIT_NOTE|CREDIT_CARD|EXPENSE|INVOICE_CREDIT_NOTE|BILL_CREDIT_NOTE|DOWN_PAYMENT|OTHER",
    "bookingProposalV2": f"{_PROPOSAL} addresses:[town] bankAccount:@bankReference contact:@contactReference "
    "lineItems:[proposalLineV2] paymentTermId "
    "bookingType:INVOICE|BILL|CREDIT_NOTE|VENDOR_CREDIT|CREDIT_CARD|EXPENSE|DOWN_PAYMENT|OTHER",
    "company": "id name environmentId client_number:number consultant_number:number subscription:[subscription]",
    "contact": "id companyName number contactType:COMPANY|CONTACT_PERSON|UNDEFINED isCustomer isSupplier "
    "addresses:[contactAddress] contactPersons:[contactPerson] emailAddresses:[email] phoneNumbers:[contactPhone] "
    f"projectId website {_TRACKED}",
    "contactBatch": f"{_BATCH} entries:[party]",
    "creditNote": f"id creditNoteNumber creditNoteDate contactId currency addresses:[address] "
    f"creditNoteLines:[orderLine] {_PAID} paymentTermId reference {_STATE} {_SUMS} {_TRACKED}",
    "dimension": f"id name categoryName status {_TRACKED}",
    "dimensionName": "dimension description",
    "document": "id fileName contentType content:base64 base64Encoded:flag",
    "documentExtensions": "allowed_file_extensions:[]",
    "documentType": "name category",
    "environment": "name type tenantId applicationFamily countryCode",
    "expense": "id description type:EXPENSE|REFUND accountCode accountId accountNumber:number currency:code customerId "
    "supplierId documentId exchangeRate expenseLines:[expenseLine] files:[] journalCode ledgerName note paymentTermId "
    "paymentType:CASH|CHECK|CREDIT_CARD|CREDIT|COLLECTION taskId totalGrossAmount totalNetAmount totalTaxAmount "
    f"transactionDate {_TRACKED}",
    "expenseLine": "id description accountCode accountId accountNumber:number currency:code documentNumber "
    "exchangeRate:number itemId dimensions:[journalDimension] taxRate:@lineTax totalGrossAmount totalNetAmount "
    f"{_TRACKED}",
    "fiscalYear": "id description startDate endDate status:OPEN|CLOSED accountNumberLength:number "
    f"chartOfAccount:SKR03|SKR04|SKR14|SKR42|SKR51 {_TRACKED}",
    "goodsReceipt": f"id reference description comment supplierId lineItems:[receiptLine] {_TRACKED}",
    "invoice": "invoiceId id invoiceNumber contactId currency invoiceDate dueDate paidDate shippingDate "
    f"{_STATE} {_PAID} invoiceType:STANDARD|BILL lineAmountTypes:EXCLUSIVE|INCLUSIVE|NOTAX name oneLineAddress "
    f"addresses:[address] paymentTermId paymentTermDuration:number reference journalCode fileId {_TAX_RULE} "
    f"discountAmount sumNetAmount totalTaxAmount totalAmount lineItems:[invoiceLine] {_TRACKED}",
    "invoiceLine": "lineItemId name description itemId accountId quantity unitAmount itemsAmount grossAmount "
    f"discountItemAmount discountItemPercentage {_TAX} dimensions:[lineDimension] {_TRACKED}",
    "item": "id name itemNumber type:PRODUCT|SERVICE unitName:PIECE|HOUR|DAY|MONTH|KILOGRAM|LITRE|METRE|PACK "
    "unitSalesPrice:amount unitPurchasePrice:amount priceIncludesTax:flag stockCount:number inventoryStartDate "
    f"assetAccountId expenseAccountId incomeAccountId {_TAX} lastModifiedDate",
    "journal": f"id code description type accountId currency {_TRACKED}",
    "journalBatch": f"{_BATCH} entries:[journalEntry]",
    "journalEntry": f"id number description transactionDate accountId accountingPeriodId currency:code {_SIDE} "
    "deliveryDate dueDate documentId exchangeRate files:[] isProvisional journalCode journalType "
    f"journalLineItems:[journalLine] taxAssignmentDate {_TRACKED}",
    "journalLine": f"id description accountCode accountId accountNumber:number currency:code customerId {_SIDE} "
    "discountAmount documentNumber exchangeRate:number supplierId thirdPartyCode dimensions:[journalDimension] "
    f"taxRate:@lineTax totalGrossAmount totalNetAmount totalTaxAmount {_TRACKED}",
    "offer": "id offerNumber offerDate name contactId currency addresses:[address] oneLineAddress reference taxText "
    f"status:DRAFT|SENT|ACCEPTED|EXPIRED|VOIDED|DECLINED lineItems:[offerLine] {_SUMS} {_TRACKED}",
    "offerLine": "id name description type:COMMENT|ACCOUNT|ITEM|RESOURCE|VALUE|FIXED_ASSET|CHARGE itemId accountId "
    f"accountCode quantity {_PRICE} {_SUMS} {_TAX} taxType {_TRACKED}",
    "openItem": "id accountId accountName accountNumber documentNumber currency type:BILL|INVOICE postingDate "
    f"entries:[openEntry] openBalance:@balance totalCreditAmount totalDebitAmount {_TRACKED}",
    "orderLine": f"id itemId itemName description quantity {_PRICE} {_SUMS} {_TAX} {_TRACKED}",
    "party": "id companyName number accountNumber:number contactType:COMPANY|CONTACT_PERSON|UNDEFINED "
    "role:CUSTOMER|SUPPLIER|CONTACT addresses:[partyAddress] bankAccounts:[bankDetails] contactPersons:[person] "
    "emailAddresses:[email] phoneNumbers:[phone] documentId projectId vatId updatedDate",
    "payment": "id currency paymentType documentType:INVOICE|BILL|BOOKING_PROPOSAL exchangeRate:number journalCode "
    f"paymentLines:[paymentLine] {_TRACKED}",
    "paymentTerm": "id name code description dueType:DUE_IN_DAYS|DUE_AS_PERIOD paymentDays:number discountDays:number "
    "discountDays2:number discountPercentage discountPercentage2 discountPeriods:[discountPeriod] "
    f"paymentMethod:CASH|BANK_TRANSFER|PAYMENT_SERVICE_PROVIDER|AUTOMATIC_BANK_WITHDRAWAL {_TRACKED}",
    "project": "id name number code description contactId currency:code parentProjectId status:ACTIVE|CLOSED startDate "
    f"endDate {_TRACKED}",
    "purchaseOrder": "id reference description comment supplierId currency:code orderDate approvalDate paymentTermId "
    f"status:OPEN|CLOSED|PARTIALLY_FULFILLED|CANCELED addresses:[address] lineItems:[orderLine] {_SUMS} {_TRACKED}",
    "receiptLine": "id itemId itemName description projectId purchaseOrderId quantityOrdered quantityReceived "
    f"{_TRACKED}",
    "salesOrder": "id comment contactId billingContactId shippingContactId currency orderDate deliveryDate "
    "oneLineAddress projectId taskId status:DRAFT|IN_REVIEW|OPEN|CLOSED|VOIDED addresses:[address] "
    f"lineItems:[orderLine] {_SUMS} {_TRACKED}",
    "task": "status:OPEN|IN_PROGRESS|FINISHED|SUCCESS|FAILED|PARTIAL_SUCCESS|CANCELLED_SUCCESSFULLY|CANCEL_FAILED|"
    "DELETED information:[taskNote] responseData:object",
    "taskId": "taskId",
    "taxRate": "id name code description percentage type:INCLUSIVE|EXCLUSIVE|NO_TAX|ZERO_TAX "
    f"usage:INVOICE|BILL|JOURNAL_ENTRY|CASH|ALL {_TRACKED}",
    "transaction": "id description amount bookingDate valueDate accountId accountNumber:number contact currency:code "
    "files:[] journalCode ledgerName reference status:CREATED|LINKED|PRIVATE|BOOKED|AUTHORISED|DELETED taskId "
    "taxRatePercentage type:RECEIVE|SPEND|RECEIVE-TRANSFER|SPEND-TRANSFER|RECEIVE-PREPAYMENT|SPEND-PREPAYMENT",
    "trialBalance": "accountCode accountName accountNumber balance:@balance openingBalance:@balance "
    f"monthlyValues:[monthlyValue] totalCreditAmount totalDebitAmount {_TRACKED}",
    "unit": "id code description type",
    "userInfo": "id account_id family_name name",
    "vendorCredit": f"{_BILL} vendorCreditDate vendorCreditNumber paymentTermId",
    "webhook": "id callbackUrl secret createdDate updatedDate expiresDate",
    # Nested records.
    "accountReference": "id code name number:number",
    "address": f"type:BILLING|DELIVERY|SELLING {_PLACE}",
    "balance": f"amount {_SIDE}",
    "bankDetails": "bic iban holder name isMainAccount sepa:flag",
    "bankReference": "id bic code iban number:number",
    "billDimension": "name categoryName",
    "contactAddress": f"type:BILLING|DELIVERY|PRIVATE|WORK|PICKUP {_PLACE}",
    "contactPerson": "id firstName lastName salutation emailAddresses:[email] phoneNumbers:[contactPhone]",
    "contactPhone": "number type:BUSINESS|MOBILE|OFFICE|FAX|PRIVATE|OTHER",
    "contactReference": "id accountNumber:number name",
    "dimensionReference": "id code dimension name",
    "discountPeriod": "invoiceRange discountDeadline discountDeadline2 paymentDeadline",
    "email": "email type:BUSINESS|PRIVATE|OFFICE|INVOICE|PAYMENT|OTHER",
    "journalDimension": "id categoryName code name",
    "lineDimension": "id categoryName name",
    "lineTax": "id code name taxRatePercentage:text",
    "monthlyValue": "month:month balance:@balance",
    "nothing": "",
    "openEntry": f"amount currency {_SIDE} description dueDate postingDate",
    "partyAddress": f"type:BILLING|DELIVERY|EMPTY|PRIVATE|WORK|PICKUP {_PLACE}",
    "paymentLine": "accountId amount contactId contactName customerId description invoiceId supplierId paymentDate",
    "person": "firstName lastName salutation emailAddresses:[email] phoneNumbers:[phone]",
    "phone": "number type:BUSINESS|MOBILE|OFFICE|FAX|PRIVATE|LANDLINE|SKYPE|WHATSAPP|OTHER",
    "proposalLine": f"{_PROPOSAL_LINE} accountCode accountId accountName accountNumber:number bookingTaxCode "
    "dimension1 dimension2 type:GOODS|SERVICES",
    "proposalLineV2": f"{_PROPOSAL_LINE} account:@accountReference dimensions:[dimensionReference] "
    "type:PRODUCT|SERVICE",
    "subscription": "id name status active:flag",
    "taskNote": "filename message timestamp type",
    "town": "city",
}

KINDS: Final = tuple(_FIELDS)
"""The names of all kinds of record."""

WITHOUT_NULLS: Final = frozenset({"fiscalYear", "webhook"})
"""Kinds whose fields are never null. Any field of another kind may be null, including its id."""

_INFERRED: Final = (
    (re.compile(r".*Date"), "moment"),
    (re.compile(r"(.*A|a)mount2?"), "amount"),
    (re.compile(r"(.*P|p)ercentage2?"), "percent"),
    (re.compile(r"quantity.*"), "number"),
    (re.compile(r"currency"), "code"),
    (re.compile(r"is[A-Z].*"), "flag"),
)


class Field(NamedTuple):
    """A field of a record."""

    name: str
    kind: str
    """``text``, ``amount``, ``percent``, ``number``, ``month``, ``moment``, ``flag``, ``code`` (of a currency),
    ``country``, ``base64``, ``object``, ``choice``, ``record``, ``records`` or ``texts``."""
    choices: tuple[str, ...] = ()
    of: str = ""
    """The kind of the nested records."""


@cache
def fields_of(kind: str) -> tuple[Field, ...]:
    """Return the fields of a kind of record.

    Raises:
        KeyError: The kind is unknown.
    """
    return tuple(map(_field, _FIELDS[kind].split()))


def _field(text: str) -> Field:
    name, _, said = text.partition(":")
    if not said:
        return Field(name, next((kind for shape, kind in _INFERRED if shape.fullmatch(name)), "text"))
    if said.startswith("@"):
        return Field(name, "record", of=said[1:])
    if said.startswith("["):
        return Field(name, "records" if said[1:-1] else "texts", of=said[1:-1])
    return Field(name, "choice", tuple(said.split("|"))) if "|" in said else Field(name, said)
